"""Builds dataclasses from what TOML and JSON files hold; every wrong key or value is explained to the user."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from dist_sketch.core.errors import UserError

T = TypeVar("T")


def from_dict(
    cls: type[T], values: Any, where: str, prefix: str = "", removed: Mapping[str, Any] = types.MappingProxyType({})
) -> T:
    """Builds the dataclass `cls` from a nested dict.

    A field may be a dataclass, a Literal, a union, a list or dict of these, a Path (given as a string), or a plain
    type; integers are accepted for floats, nothing else is converted. Keys may be written with "-" or "_".

    Args:
        where: the file that the values come from, for error messages.
        prefix: what stands before the keys in these messages, such as "data.".
        removed: dotted keys that are no longer fields, with the only values at which they are accepted and ignored.

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the file'} must be a table of settings, not {values!r}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in hints:
            arguments[name] = _convert(hints[name], value, where, prefix + name, removed)
        elif prefix + name not in removed or removed[prefix + name] != value:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(hints))}"
            raise UserError(f"{where}: there is no setting {prefix}{key}; {hint}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in arguments:
            raise UserError(f"{where}: {prefix}{field.name} is missing")
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str, key: str, removed: Mapping[str, Any]) -> Any:
    """The value as the type hint asks for it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, key + ".", removed)  # type: ignore[arg-type]
    if origin is Literal:
        if any(type(value) is type(a) and value == a for a in arguments):  # True == 1 == 1.0
            return value
        raise UserError(f"{where}: {key} = {value!r}: must be one of {', '.join(map(repr, arguments))}")
    if origin is types.UnionType:  # of a type and None
        (plain,) = (a for a in arguments if a is not types.NoneType)
        return None if value is None else _convert(plain, value, where, key, removed)
    kind: Any = origin or hint
    accepted: tuple[type, ...] = {float: (int, float), Path: (str, Path)}.get(kind, (kind,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        name = str(hint) if origin else hint.__name__.lower()
        raise UserError(f"{where}: {key} = {value!r}: must be of type {name}")
    checked: Any = value
    if kind is list and arguments:
        return [_convert(arguments[0], v, where, f"{key}[{i}]", removed) for i, v in enumerate(checked)]
    if kind is dict and arguments:
        return {k: _convert(arguments[1], v, where, f"{key}.{k}", removed) for k, v in checked.items()}
    if kind is float and not math.isfinite(checked):
        raise UserError(f"{where}: {key} = {value}: must be a finite number")
    return checked if kind in (list, dict) else kind(checked)
