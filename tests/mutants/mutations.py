"""Small changes of Python source, found on its syntax tree: one operator, constant, condition, call or order of two.

Each is a replacement of one stretch of the text, so that the rest, comments included, stays as it is.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_SAME_OR_NONSENSE = frozenset({"min", "max", "isinstance", "issubclass", "getattr", "hasattr", "setattr"})
"""Calls whose first two arguments exchanged mean the same, or nothing."""


@dataclass(frozen=True)
class Mutation:
    """One change of one file."""

    function: str
    """In which it is, with its class; "" outside of any."""
    line: int
    old: str
    new: str
    start: int
    """Of the old text in the file's UTF-8 bytes."""

    def applied(self, source: str) -> str:
        """The whole file with the change."""
        content, old = source.encode(), self.old.encode()
        assert content[self.start :].startswith(old)
        return (content[: self.start] + self.new.encode() + content[self.start + len(old) :]).decode()


def mutations(source: str) -> list[Mutation]:
    """All of a file, in the order of its text; what is written for readers and type checkers is left alone.

    Example: `return a < b` has one, `return a <= b`.
    """
    lines = source.encode().splitlines(keepends=True)
    begins = [0]
    for line in lines:
        begins.append(begins[-1] + len(line))
    found = []
    for node, function in _nodes(ast.parse(source), ""):
        for place, new in _changes(node):
            assert place.end_lineno is not None
            assert place.end_col_offset is not None
            first = begins[place.lineno - 1] + place.col_offset
            last = begins[place.end_lineno - 1] + place.end_col_offset
            found.append(Mutation(function, place.lineno, source.encode()[first:last].decode(), new, first))
    return sorted(found, key=lambda mutation: (mutation.start, mutation.old, mutation.new))


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """What runs: neither annotations nor decorators, messages of errors, asserts, imports or docstrings."""
    if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.stmt | ast.expr):
        yield node, function
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        function = f"{function}.{node.name}".lstrip(".")
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST):
                yield from _nodes(part, function)


def _changes(node: ast.stmt | ast.expr) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """What may stand in a node's place, or in that of its condition."""
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not _is_turned_round(node.test):
        yield node.test, f"(not ({ast.unparse(node.test)}))"
    for kind, change in _CHANGES.items():
        if isinstance(node, kind):
            for changed in change(copy.deepcopy(node)):
                text = ast.unparse(changed)
                yield node, text if isinstance(changed, ast.stmt | ast.Constant | ast.Call) else f"({text})"


def _is_turned_round(test: ast.expr) -> bool:
    """Whether another mutation of this condition is its opposite."""
    turned = ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
    is_not = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return is_not or (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], turned))


def _compared(node: ast.Compare) -> Iterator[ast.AST]:
    for place, operator in enumerate(node.ops):
        node.ops[place] = _COMPARISONS[type(operator)]()
        yield node
        node.ops[place] = operator


def _reckoned(node: ast.BinOp) -> Iterator[ast.AST]:
    if type(node.op) in _ARITHMETIC and not any(_is_text(side) for side in (node.left, node.right)):
        node.op = _ARITHMETIC[type(node.op)]()
        yield node


def _added(node: ast.AugAssign) -> Iterator[ast.AST]:
    if type(node.op) in _ARITHMETIC:
        node.op = _ARITHMETIC[type(node.op)]()
        yield node


def _joined(node: ast.BoolOp) -> Iterator[ast.AST]:
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield node


def _undone(node: ast.UnaryOp) -> Iterator[ast.AST]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield node.operand


def _constant(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(abs(node.value - 1)) if node.value != 0 else ast.UnaryOp(ast.USub(), ast.Constant(1))
    elif isinstance(node.value, float):
        yield ast.Constant(node.value + 1.0)


def _removed(node: ast.Expr) -> Iterator[ast.AST]:
    if isinstance(node.value, ast.Call):
        yield ast.Pass()


def _called(node: ast.Call) -> Iterator[ast.AST]:
    arguments = node.args
    is_worth_it = not (isinstance(node.func, ast.Name) and node.func.id in _SAME_OR_NONSENSE)
    is_worth_it = is_worth_it and len({ast.dump(one) for one in arguments[:2]}) == 2
    if is_worth_it and not any(isinstance(one, ast.Starred) for one in arguments[:2]):
        arguments[:2] = arguments[1::-1]
        yield node
        arguments[:2] = arguments[1::-1]
    if isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        node.func.id = _NAMES[node.func.id]
        yield node


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


_CHANGES: dict[type[ast.AST], Callable[..., Iterator[ast.AST]]] = {
    ast.Compare: _compared,
    ast.BinOp: _reckoned,
    ast.AugAssign: _added,
    ast.BoolOp: _joined,
    ast.UnaryOp: _undone,
    ast.Constant: _constant,
    ast.Expr: _removed,
    ast.Call: _called,
}
