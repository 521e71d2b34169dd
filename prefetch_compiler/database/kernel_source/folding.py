"""Substituting constants in statements, and folding what they decide: branches, conditions, comparisons.

Only what is certain is folded; the rest stays as it stands. ``and`` and ``or`` give one of their operands, so that more
can be folded where nothing but the truth of the result matters: in conditions.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from .tree import rebuilt, replaced

Value = None | bool | int | float | str

_ORDERED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_LEAVES = (ast.Return, ast.Raise, ast.Break, ast.Continue)


def is_constant(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, None | bool | int | float | str)


def same_value(one: Value, other: Value) -> bool:
    """1, True and 1.0 are three values, and so are 0.0 and -0.0."""
    return type(one) is type(other) and repr(one) == repr(other)


def folded(body: Sequence[ast.stmt], values: Mapping[str, Value], dropped: Collection[ast.stmt] = ()) -> list[ast.stmt]:
    """``body`` with ``values`` in the place of names, without ``dropped``, docstrings and what is never reached.

    May be empty. The caller knows that nothing in ``body`` binds the names of ``values``.
    """
    return _Folding(values, frozenset(map(id, dropped))).statements(body)


class _Folding:
    def __init__(self, values: Mapping[str, Value], dropped: frozenset[int]) -> None:
        self.values = values
        self.dropped = dropped

    def statements(self, body: Sequence[ast.stmt]) -> list[ast.stmt]:
        kept: list[ast.stmt] = []
        for statement in body:
            if id(statement) not in self.dropped:
                kept += self._statement(statement)
            if kept and isinstance(kept[-1], _LEAVES):
                break
        return kept

    def _statement(self, node: ast.stmt) -> list[ast.stmt]:
        match node:
            case ast.If():
                return self._branch(node)
            case ast.While():
                test = self.expression(node.test, truth=True)
                if isinstance(test, ast.Constant) and not test.value and is_constant(test):
                    return self.statements(node.orelse)
                return [replaced(node, test=test, body=self._block(node.body), orelse=self.statements(node.orelse))]
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                return []
        return [self._children(node)]

    def _branch(self, node: ast.If) -> list[ast.stmt]:
        test = self.expression(node.test, truth=True)
        if isinstance(test, ast.Constant) and is_constant(test):
            return self.statements(node.body if test.value else node.orelse)
        body, orelse = self.statements(node.body), self.statements(node.orelse)
        if not body and not orelse and _pure(test):
            return []
        return [replaced(node, test=test, body=body or [ast.Pass()], orelse=orelse)]

    def _block(self, body: Sequence[ast.stmt]) -> list[ast.stmt]:
        return self.statements(body) or [ast.Pass()]

    def _children(self, node: Any) -> Any:
        """Any node whose own meaning is not folded. Blocks stay blocks, but for an ``else`` with nothing in it."""
        blocks = {}
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block:
                blocks[name] = self.statements(block) if name == "orelse" else self._block(block)
        if not blocks:
            return rebuilt(node, self._any)
        return rebuilt(replaced(node, **blocks), lambda one: one if isinstance(one, ast.stmt) else self._any(one))

    def _any(self, node: ast.AST) -> ast.AST:
        return self.expression(node) if isinstance(node, ast.expr) else self._children(node)

    def expression(self, node: ast.expr, truth: bool = False) -> ast.expr:
        """Args: truth: nothing matters but whether the result is true."""
        match node:
            case ast.Name(id=name):
                return ast.copy_location(ast.Constant(self.values[name]), node) if name in self.values else node
            case ast.Constant():
                return node
            case ast.BoolOp(op=op):
                operands = [self.expression(one, truth) for one in node.values]
                return _bool_op(node, operands, isinstance(op, ast.Or), truth)
            case ast.UnaryOp(op=ast.Not()):
                return _not(node, self.expression(node.operand, truth=True))
            case ast.UnaryOp(op=ast.USub()):
                return _negative(node, self.expression(node.operand))
            case ast.Compare():
                return _compare(rebuilt(node, self._any))
            case ast.IfExp():
                test = self.expression(node.test, truth=True)
                if isinstance(test, ast.Constant) and is_constant(test):
                    return self.expression(node.body if test.value else node.orelse, truth)
                body, orelse = self.expression(node.body, truth), self.expression(node.orelse, truth)
                return replaced(node, test=test, body=body, orelse=orelse)
        return rebuilt(node, self._any)


def _bool_op(node: ast.BoolOp, operands: list[ast.expr], either: bool, truth: bool) -> ast.expr:
    """``either`` is true for ``or``. An operand decides when none after it is evaluated, and is neutral otherwise."""
    kept: list[ast.expr] = []
    for place, operand in enumerate(operands):
        if not (isinstance(operand, ast.Constant) and is_constant(operand)):
            kept.append(operand)
        elif bool(operand.value) is either:
            if all(map(_pure, kept)) and (truth or (isinstance(operand.value, bool) and all(map(_is_bool, kept)))):
                return operand
            kept.append(operand)
            break
        elif not truth and place == len(operands) - 1:
            kept.append(operand)
    if not kept:
        return ast.copy_location(ast.Constant(not either), node)
    return kept[0] if len(kept) == 1 else replaced(node, values=kept)


def _not(node: ast.UnaryOp, operand: ast.expr) -> ast.expr:
    if isinstance(operand, ast.Constant) and is_constant(operand):
        return ast.copy_location(ast.Constant(not operand.value), node)
    return node if operand is node.operand else replaced(node, operand=operand)


def _negative(node: ast.UnaryOp, operand: ast.expr) -> ast.expr:
    """-1 is an operator and a literal in the source, and a literal where it was substituted."""
    if isinstance(operand, ast.Constant) and type(operand.value) in (int, float):
        return ast.copy_location(ast.Constant(-operand.value), node)  # type: ignore[operator]
    return node if operand is node.operand else replaced(node, operand=operand)


def _compare(node: ast.Compare) -> ast.expr:
    if len(node.ops) > 1 or not is_constant(node.left):
        return node
    assert isinstance(node.left, ast.Constant)
    decided = _decided(node.ops[0], node.left.value, node.comparators[0])
    return node if decided is None else ast.copy_location(ast.Constant(decided), node)


def _decided(op: ast.cmpop, left: Any, right: ast.expr) -> bool | None:
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not all(map(is_constant, right.elts)):
            return None
        found = any(left == one.value for one in right.elts if isinstance(one, ast.Constant))
        return found is isinstance(op, ast.In)
    if not isinstance(right, ast.Constant) or not is_constant(right):
        return None
    value: Any = right.value
    if isinstance(op, ast.Eq | ast.NotEq):
        return bool(left == value) is isinstance(op, ast.Eq)
    if isinstance(op, ast.Is | ast.IsNot):
        # Which equal numbers and strings are one object is the interpreter's business.
        if not any(isinstance(one, None | bool) for one in (left, value)):
            return None
        return (left is value) is isinstance(op, ast.Is)
    numbers = isinstance(left, int | float) and isinstance(value, int | float)
    return _ORDERED[type(op)](left, value) if numbers else None


def _pure(node: ast.expr) -> bool:
    """Whether nothing is lost when ``node`` is not evaluated: it calls nothing."""
    match node:
        case ast.Name() | ast.Constant():
            return True
        case ast.Attribute(value=value):
            return _pure(value)
        case ast.UnaryOp(operand=operand):
            return _pure(operand)
        case ast.BinOp(left=left, right=right):
            return _pure(left) and _pure(right)
        case ast.Compare(left=left, comparators=others):
            return _pure(left) and all(map(_pure, others))
        case ast.BoolOp(values=values):
            return all(map(_pure, values))
    return False


def _is_bool(node: ast.expr) -> bool:
    """Whether ``node`` gives True or False and nothing else that is true or false. Of a comparison of tensors, ``and``
    with a constant False takes the constant."""
    match node:
        case ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.BoolOp(values=values):
            return all(map(_is_bool, values))
    return False
