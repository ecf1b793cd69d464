"""Expressions over the labels of a pair, as `style == 1 and not smile`: a small part of Python's, and never run by it.

There are numbers, texts, true and false (which are 1 and 0), names of labels, comparisons (also chained), `in` with a
list of values, `and`, `or`, `not`, and `3 if source == 'cufs' else 1`. A comparison with a label that a pair lacks is
false.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dist_sketch.core.errors import SharedError

MOST_CHARACTERS = 1000
MOST_DEPTH = 20
Value = bool | int | float | str | None  # None: the pair has no such label
Row = Mapping[str, Value]
Part = Callable[[Row], Value]

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le},
    **{ast.Gt: operator.gt, ast.GtE: operator.ge},
}
GRAMMAR = "style == 1 and not smile, source in ('cufs', 'fs2k'), label('hair color') > 0, 3 if style == 1 else 1"


class Expression:
    """An expression, parsed and checked; call it with the labels of a pair.

    Args:
        setting: the option that holds it, for error messages.

    Raises:
        UserError: the text is no such expression; a call raises it if the labels are of another kind than the
            expression takes them for.
    """

    def __init__(self, text: str, setting: str):
        self._about = f"{setting} = {text!r}"
        self.names: dict[str, None] = {}  # the labels in it, in order
        if len(text) > MOST_CHARACTERS:
            raise SharedError(f"{self._about[:60]} ...: has more than {MOST_CHARACTERS:,} characters")
        self._source = text.replace("\n", " ").strip()
        try:
            with warnings.catch_warnings(action="ignore"):  # what Python thinks of `1is 1`
                tree = ast.parse(self._source, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            why = e.msg if isinstance(e, SyntaxError) else str(e)
            why += "; equal is ==" * bool(re.search(r"(?<![=!<>])=(?!=)", text))
            raise self._error(f"is no expression over labels ({why}); examples: {GRAMMAR}") from e
        self._value = self._part(tree.body, 0)

    def __call__(self, row: Row) -> Value:
        """The value for a pair with these labels, of which each in `names` is there."""
        return self._value(row)

    def holds(self, row: Row) -> bool:
        """Whether the value counts as true: true, or a number but 0.

        Raises:
            UserError: it is a text.
        """
        return self._truth(self._value(row))

    def _error(self, text: str) -> SharedError:
        return SharedError(f"{self._about}: {text}")

    def _part(self, node: ast.expr, depth: int) -> Part:
        """A function that gives the value of a part of the expression."""
        if depth > MOST_DEPTH:
            raise self._error(f"is nested more than {MOST_DEPTH} deep")

        def part(inner: ast.expr) -> Part:
            return self._part(inner, depth + 1)

        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return lambda _: value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return lambda _: -value
            case ast.Name(id="true" | "false" as word):  # as JSON and TOML write them
                return lambda _: word == "true"
            case (
                ast.Name(id=name)
                | ast.Call(func=ast.Name(id="label"), args=[ast.Constant(value=str() as name)], keywords=[])
            ):
                self.names[name] = None
                return lambda row: row[name]
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                value_of = part(operand)
                return lambda row: not self._truth(value_of(row))
            case ast.BoolOp(op=op, values=values):
                parts, both = [part(v) for v in values], all if isinstance(op, ast.And) else any
                return lambda row: both(self._truth(p(row)) for p in parts)
            case ast.IfExp(test=test, body=body, orelse=otherwise):
                condition, then, other = part(test), part(body), part(otherwise)
                return lambda row: then(row) if self._truth(condition(row)) else other(row)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._comparison([left, *others], ops, part)
        found = ast.get_source_segment(self._source, node)
        raise self._error(f"cannot have {found!r} in it; examples of what it can have: {GRAMMAR}")

    def _comparison(
        self, sides: Sequence[ast.expr], ops: Sequence[ast.cmpop], part: Callable[[ast.expr], Part]
    ) -> Part:
        links: list[Part] = []
        for left, op, right in zip(sides, ops, sides[1:], strict=False):
            if type(op) in COMPARISONS:
                links.append(self._link(part(left), COMPARISONS[type(op)], part(right)))
            elif isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple | ast.List) and right.elts:
                links.append(self._membership(part(left), [part(v) for v in right.elts], isinstance(op, ast.In)))
            else:
                what = "'in' needs a list of values" if isinstance(op, ast.In | ast.NotIn) else "compare with =="
                raise self._error(f"{what}; examples: {GRAMMAR}")
        return lambda row: all(link(row) for link in links)

    def _link(self, left: Part, compare: Callable[[Any, Any], bool], right: Part) -> Part:
        def link(row: Row) -> bool:
            first, second = left(row), right(row)
            return self._may_compare(first, second) and compare(first, second)

        return link

    def _membership(self, left: Part, values: Sequence[Part], wanted: bool) -> Part:
        def link(row: Row) -> bool:
            first = left(row)
            found = [self._may_compare(first, other) and first == other for other in (v(row) for v in values)]
            return first is not None and any(found) == wanted

        return link

    def _may_compare(self, first: Value, second: Value) -> bool:
        """Whether both are there.

        Raises:
            UserError: one is a text and the other a number.
        """
        if first is None or second is None:
            return False
        if isinstance(first, str) != isinstance(second, str):
            raise self._error(f"compares {_kind(first)} with {_kind(second)}")
        return True

    def _truth(self, value: Value) -> bool:
        if isinstance(value, str):
            raise self._error(f"takes {_kind(value)} for true or false; compare it with something")
        return bool(value)


def _kind(value: Value) -> str:
    return f"the text {value!r}" if isinstance(value, str) else f"the number {value!r}"
