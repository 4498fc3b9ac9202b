"""Conditions over the columns of a manifest: `height >= 256 and motion > 0.1`.

A condition is written as in Python and means the same, but for rows where a value is missing: they
satisfy neither a comparison nor its opposite, and `motion is None` asks for them.

    names        the columns below, and the scores
    values       numbers, 'text', True, False; (a, b, c) behind `in` and `not in`
    operators    and, or, not; < <= == != >= >, a < b < c too; in, not in; is None; + - * /

It is parsed, checked against the columns' types and made an Arrow expression before anything is
read; nothing of it is ever executed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.errors import DataError, suggestion

NUMBER, TEXT, TRUTH = "a number", "text", "a condition"
# What is made of other columns, and of which; a still image has no rate and lasts no time.
DERIVED: Mapping[str, tuple[tuple[str, ...], Callable[..., pc.Expression]]] = {
    "fps": (("fps_num", "fps_den"), lambda over, under: _real(over) / _real(under)),
    "seconds": (
        ("fps_num", "start_s", "end_s"),
        lambda rate, start, end: pc.if_else(rate > 0, end - start, 0.0),
    ),
    "frames": (("n_frames",), lambda count: count),
}
COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
COMBINE: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
LONGEST, SHOWN = 4096, 200  # characters


class Term(NamedTuple):
    """A part of a condition: what Arrow computes, which kind of value it is, and how it reads."""

    value: Any
    kind: str
    text: str


def parse(condition: str, schema: pa.Schema) -> pc.Expression:
    """The condition over a table of this schema.

    Raises:
      DataError: code 2, in one sentence: what is wrong, where, and what there is instead.
    """
    shown = condition if len(condition) <= SHOWN else f"{condition[:SHOWN]}..."
    try:
        if len(condition) > LONGEST:
            raise DataError(f"it is longer than {LONGEST} characters.")
        tree = ast.parse(condition.strip(), mode="eval").body
        found = _Reader(columns(schema)).read(tree)
        if found.kind != TRUTH:
            raise DataError(f"it is {found.kind}; a condition is needed, such as 'height >= 256'.")
    except DataError as error:
        raise DataError(f"where is {shown!r}: {error}", code=2) from None
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or error
        raise DataError(f"where is {shown!r}: it cannot be read ({reason}).", code=2) from None
    return found.value


def columns(schema: pa.Schema) -> dict[str, Term]:
    """What a condition may name: plain columns, the fields of structs such as the scores by their
    own names, and `DERIVED`."""
    found: dict[str, Term] = {}
    for field in schema:
        paths: list[tuple[str, ...]] = [(field.name,)]
        if pa.types.is_struct(field.type):
            paths = [(field.name, leaf.name) for leaf in field.type]
        for path in paths:
            kind = _kind(field.type.field(path[-1]).type if len(path) > 1 else field.type)
            if kind:
                found[path[-1]] = Term(pc.field(*path), kind, path[-1])
    for name, (needed, make) in DERIVED.items():
        if set(needed) <= set(schema.names):
            found[name] = Term(make(*map(pc.field, needed)), NUMBER, name)
    return found


def _kind(type_: pa.DataType) -> str | None:
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return NUMBER
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return TEXT
    return TRUTH if pa.types.is_boolean(type_) else None


def _real(value: pc.Expression) -> pc.Expression:
    # Whole numbers would be divided without a remainder, and overflow in silence.
    return value.cast(pa.float64())


class _Reader:
    """Makes a tree of Python's syntax a term, or says what there is no such thing as."""

    def __init__(self, known: Mapping[str, Term]):
        self.known = known

    def read(self, node: ast.expr) -> Term:
        text = ast.unparse(node)
        match node:
            case ast.Name(id=name):
                return self._name(name)
            case ast.Constant(value=bool() as value):
                return Term(pc.scalar(value), TRUTH, text)
            case ast.Constant(value=int() | float() as value):
                return Term(pc.scalar(value), NUMBER, text)
            case ast.Constant(value=str() as value):
                return Term(pc.scalar(value), TEXT, text)
            case ast.BoolOp(op=op, values=values):
                parts = [self._of_kind(value, TRUTH).value for value in values]
                both = operator.and_ if isinstance(op, ast.And) else operator.or_
                found = parts[0]
                for part in parts[1:]:
                    found = both(found, part)
                return Term(found, TRUTH, text)
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return Term(~self._of_kind(inner, TRUTH).value, TRUTH, text)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                return Term(pc.negate(self._of_kind(inner, NUMBER).value), NUMBER, text)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in COMBINE:
                one, other = (_real(self._of_kind(side, NUMBER).value) for side in (left, right))
                return Term(COMBINE[type(op)](one, other), NUMBER, text)
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                parts = [
                    self._compare(one, op, other)
                    for one, op, other in zip(sides, ops, others, strict=False)
                ]
                found = parts[0]
                for part in parts[1:]:
                    found = found & part
                return Term(found, TRUTH, text)
        raise DataError(f"{text} is nothing that a condition can have.")

    def _name(self, name: str) -> Term:
        if name in self.known:
            return self.known[name]
        raise DataError(f"there is no column '{name}'. {suggestion(name, self.known)}")

    def _of_kind(self, node: ast.expr, kind: str) -> Term:
        found = self.read(node)
        if found.kind != kind:
            raise DataError(f"{found.text} is {found.kind}, where {kind} is needed.")
        return found

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        one = self.read(left)
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise DataError("'is' asks for None only; compare with ==.")
            return one.value.is_null() if isinstance(op, ast.Is) else one.value.is_valid()
        if isinstance(op, ast.In | ast.NotIn):
            found = one.value.isin(self._values(right, one))
            known = found & one.value.is_valid()
            return known if isinstance(op, ast.In) else ~found & one.value.is_valid()
        other = self.read(right)
        if one.kind != other.kind:
            raise DataError(
                f"{one.text} is {one.kind} and {other.text} is {other.kind}; they cannot be "
                "compared."
            )
        if one.kind == TRUTH and not isinstance(op, ast.Eq | ast.NotEq):
            raise DataError(f"{one.text} is {one.kind}, which is neither less nor more.")
        return COMPARE[type(op)](one.value, other.value)

    def _values(self, node: ast.expr, like: Term) -> list[Any]:
        """The values in brackets, all of one kind."""
        if not isinstance(node, ast.Tuple | ast.List) or not node.elts:
            raise DataError(f"{ast.unparse(node)} is no list of values, such as ('a', 'b').")
        for element in node.elts:
            if not isinstance(element, ast.Constant) or self.read(element).kind != like.kind:
                raise DataError(f"{ast.unparse(element)} is not {like.kind} as {like.text} is.")
        return [element.value for element in node.elts if isinstance(element, ast.Constant)]
