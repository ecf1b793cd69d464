"""Checks what TOML and JSON files hold, and builds dataclasses from it; every wrong key or value is explained."""

import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import path_of
from dist_sketch.core.places import Address, place

T = TypeVar("T")
SHOWN = reprlib.Repr()  # others' values may be long and deep
SHOWN.maxstring = SHOWN.maxother = 100
MOST = {int: 2**63 - 1, float: 1e38}  # larger ones fit into no array of integers, and of float32


class Rule(NamedTuple):
    """What the values of a type must fulfil: the second part of an `Annotated` type."""

    allowed: str  # ends the sentence "must be"
    holds: Callable[[Any], bool]


def from_dict(
    cls: type[T], values: Any, where: str, prefix: str = "", removed: Mapping[str, Any] = types.MappingProxyType({})
) -> T:
    """Builds the dataclass `cls` from a nested dict.

    A field may be a dataclass, a Literal, a union, a list or dict of these, a Path or a Place (given as a string), or
    a plain type; integers are accepted for floats, nothing else is converted. Keys may be written with "-" or "_".

    Args:
        where: the file that the values come from, for error messages.
        prefix: what stands before the keys in these messages, such as "data.".
        removed: dotted keys that are no longer fields, with the only values at which they are accepted and ignored.

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        what = prefix.rstrip(".") or "the file"
        raise UserError(f"{where}: {what} must be a table of settings, not {SHOWN.repr(values)}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in arguments:
            raise UserError(f"{where}: {prefix}{name} is there twice")
        if name in hints:
            arguments[name] = _convert(hints[name], value, where, prefix + name, removed)
        elif prefix + name not in removed or removed[prefix + name] != value:
            near = difflib.get_close_matches(name[:100], hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(hints))}"
            raise UserError(f"{where}: there is no setting {prefix}{SHOWN.repr(key)[1:-1]}; {hint}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in arguments:
            raise UserError(f"{where}: {prefix}{field.name} is missing")
    return cls(**arguments)


def checked(kind: Any, value: Any, where: str) -> Any:
    """A value of a JSON file as the type `kind` asks for it, which may be a TypedDict; keys that it lacks are kept.

    Raises:
        UserError: a key is missing, or a value is of the wrong type or out of its range.
    """
    return _convert(kind, value, where, "", {})


def _convert(hint: Any, value: Any, where: str, key: str, removed: Mapping[str, Any]) -> Any:
    """The value as the type hint asks for it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, key + "." * bool(key), removed)  # type: ignore[arg-type]
    if typing.is_typeddict(hint):
        return _typed_dict(hint, value, where, key)
    if origin is Literal:
        if any(type(value) is type(a) and value == a for a in arguments):  # True == 1 == 1.0
            return value
        raise _wrong(value, where, key, f"one of {', '.join(map(repr, arguments))}")
    if origin is Annotated:
        result = _convert(arguments[0], value, where, key, removed)
        for rule in arguments[1:]:
            if not rule.holds(result):
                raise _wrong(value, where, key, rule.allowed)
        return result
    if origin in (types.UnionType, typing.Union):  # of a type, or of a Place, and None
        if Address in arguments and isinstance(value, str) and "://" in value:
            try:
                return place(value)
            except UserError as e:
                raise UserError(f"{where}: {key}: {e}") from e
        (plain,) = (a for a in arguments if a not in (types.NoneType, Address))
        return None if value is None else _convert(plain, value, where, key, removed)
    kind: Any = origin or hint
    accepted: tuple[type, ...] = {float: (int, float), Path: (str, Path)}.get(kind, (kind,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        name = str(hint) if origin else hint.__name__.lower()
        raise _wrong(value, where, key, f"of type {name}")
    of_any: Any = value
    if kind is list and arguments:
        own = typing.get_origin(arguments[0]) is Annotated
        plain, *rules = typing.get_args(arguments[0]) if own else arguments
        simple = own and plain in (int, str) and set(map(type, of_any)) <= {plain}
        if simple and all(all(map(rule.holds, of_any)) for rule in rules):
            return list(of_any)  # a manifest has millions; one by one it would take minutes
        return [_convert(arguments[0], v, where, f"{key}[{i}]", removed) for i, v in enumerate(of_any)]
    if kind is dict and arguments:
        for name in of_any:
            _convert(arguments[0], name, where, f"a key of {key or 'the file'}", removed)
        return {k: _convert(arguments[1], v, where, f"{key}.{SHOWN.repr(k)[1:-1]}", removed) for k, v in of_any.items()}
    if isinstance(value, int | float) and not fits(value):
        raise _wrong(value, where, key, "a finite number below " + ("2^63" if isinstance(value, int) else "10^38"))
    if kind is Path and "\0" in str(value):
        raise _wrong(value, where, key, "a path")
    return value if kind in (list, dict) else path_of(of_any) if kind is Path else kind(of_any)


def fits(value: float) -> bool:
    """Whether a number is finite, and small enough to compute with."""
    return abs(value) <= MOST[int if isinstance(value, int) else float]


def _wrong(value: Any, where: str, key: str, allowed: str) -> UserError:
    return UserError(f"{where}: {key or 'the file'} = {SHOWN.repr(value)}: must be {allowed}")


def _typed_dict(kind: Any, value: Any, where: str, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key or 'the file'} must be a table of values, not {SHOWN.repr(value)}")
    prefix, result = key + "." * bool(key), dict(value)
    for name in sorted(kind.__required_keys__ - value.keys()):
        raise UserError(f"{where}: {prefix}{name} is missing")
    for name, hint in _hints(kind).items():
        if name in value:
            result[name] = _convert(hint, value[name], where, prefix + name, {})
    return result


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a TypedDict's keys; looked up once, because a log has a million lines."""
    found = typing.get_type_hints(kind, include_extras=True).items()
    return {k: typing.get_args(h)[0] if typing.get_origin(h) is typing.NotRequired else h for k, h in found}
