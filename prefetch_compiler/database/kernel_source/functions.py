"""One function without the parameters of absent features, and without what they leave dead in it."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .folding import Value, folded, is_constant
from .tree import bound_names, replaced

# Taking a branch out would change what such a function is, or which variables are its own.
_UNTOUCHED = (ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal)


@dataclass(frozen=True, eq=False)
class Specialised:
    """``removed``: the parameters that ``node`` no longer has. Its own calls still have their arguments."""

    node: ast.FunctionDef
    removed: frozenset[str]


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names of all parameters that a call may name, but for ``*args`` and ``**kwargs``."""
    signature = function.args
    return [one.arg for one in (*signature.posonlyargs, *signature.args, *signature.kwonlyargs)]


def default_of(function: ast.FunctionDef, parameter: str) -> ast.expr | None:
    signature = function.args
    positional = [*signature.posonlyargs, *signature.args]
    defaults = dict(zip(reversed([one.arg for one in positional]), reversed(signature.defaults), strict=False))
    for one, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True):
        if default is not None:
            defaults[one.arg] = default
    return defaults.get(parameter)


def specialised(function: ast.FunctionDef, absent: Mapping[str, Value], kept: Collection[str]) -> Specialised:
    """``function`` with the parameters in ``absent``, but for those in ``kept``, replaced by their values.

    A parameter that is bound anew stays, unless that happens only in branches that are not taken.
    """
    if any(isinstance(node, _UNTOUCHED) for node in ast.walk(function)):
        return Specialised(function, frozenset())
    arguments = parameters(function)
    waiting = {name for name in arguments if name in absent and name not in kept}
    removed: set[str] = set()
    body: Sequence[ast.stmt] = function.body
    first = True
    while True:
        bound = Counter(name for statement in body for name in bound_names(statement, nested=True))
        constants = _constant_locals(body, bound, arguments)
        ready = {name for name in waiting if not bound[name]}
        if not (ready or constants or first):
            break
        first = False
        values = {name: absent[name] for name in ready}
        values |= {name: value for name, (_, value) in constants.items()}
        body = folded(body, values, [statement for statement, _ in constants.values()])
        removed |= ready
        waiting -= ready
    node = replaced(function, args=_without(function.args, removed), body=list(body) or [ast.Pass()])
    return Specialised(node, frozenset(removed))


def _constant_locals(
    body: Sequence[ast.stmt], bound: Mapping[str, int], arguments: Collection[str]
) -> dict[str, tuple[ast.stmt, Value]]:
    """Variables that are one constant throughout, and the statements that say so: ``X: tl.constexpr = 0`` and
    ``x = None``. What else a plain assignment of a literal makes in a kernel, a constant or a tensor, is Triton's
    business."""
    found = {}
    for statement in _statements(body):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value), annotation=annotation):
                constant = is_constant(statement.value) and _is_constexpr(annotation)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                constant = value is None
            case _:
                continue
        if constant and bound[name] == 1 and name not in arguments:
            found[name] = (statement, value)
    return found


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a function itself, at any depth; not those of functions and classes inside it."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            waiting += ast.iter_child_nodes(node)


def _is_constexpr(annotation: ast.expr) -> bool:
    match annotation:
        case ast.Name(id="constexpr") | ast.Attribute(attr="constexpr"):
            return True
    return False


def _without(signature: ast.arguments, removed: Collection[str]) -> ast.arguments:
    if not removed:
        return signature
    positional = [*signature.posonlyargs, *signature.args]
    undefaulted = len(positional) - len(signature.defaults)
    defaults = [
        default
        for one, default in zip(positional[undefaulted:], signature.defaults, strict=True)
        if one.arg not in removed
    ]
    named = [
        (one, default)
        for one, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
        if one.arg not in removed
    ]
    return replaced(
        signature,
        posonlyargs=[one for one in signature.posonlyargs if one.arg not in removed],
        args=[one for one in signature.args if one.arg not in removed],
        defaults=defaults,
        kwonlyargs=[one for one, _ in named],
        kw_defaults=[default for _, default in named],
    )
