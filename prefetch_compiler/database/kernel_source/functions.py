"""One function without the parameters of absent features, and without what they leave dead in it."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .folding import Value, folded, is_constant
from .tree import bound_names, children, replaced, walk

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
    if any(isinstance(node, _UNTOUCHED) for node in walk(function)):
        return Specialised(function, frozenset())
    arguments = parameters(function)
    removed: set[str] = set()
    body = function.body
    first = True
    while True:
        waiting = {name for name in arguments if name in absent and name not in kept} - removed
        values, dropped = _known(body, waiting, absent, arguments)
        if not (values or first):
            break
        first = False
        body = folded(body, values, dropped)
        removed |= waiting & values.keys()
    node = replaced(function, args=_without(function.args, removed), body=body or [ast.Pass()])
    return Specialised(node, frozenset(removed))


def _known(
    body: Sequence[ast.stmt], waiting: Collection[str], absent: Mapping[str, Value], arguments: Collection[str]
) -> tuple[dict[str, Value], list[ast.stmt]]:
    """Values of the names that are one constant throughout ``body``, and the statements that do nothing but say so."""
    constants = [found for found in map(_constant, _statements(body)) if found and found[0] not in arguments]
    if not (waiting or constants):
        return {}, []
    bound = Counter(name for statement in body for name in bound_names(statement, nested=True))
    constants = [found for found in constants if bound[found[0]] == 1]
    values = {name: absent[name] for name in waiting if not bound[name]}
    values |= {name: value for name, value, _ in constants}
    return values, [statement for _, _, statement in constants]


def _constant(statement: ast.stmt) -> tuple[str, Value, ast.stmt] | None:
    """Of ``X: tl.constexpr = 0`` and ``x = None``. What else a plain assignment of a literal makes in a kernel, a
    constant or a tensor, is Triton's business."""
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value) as node, annotation=annotation):
            if is_constant(node) and _is_constexpr(annotation):
                return name, value, statement  # type: ignore[return-value]
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=None)):
            return name, None, statement
    return None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a function itself, at any depth; not those of functions and classes inside it."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            waiting += children(node)


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
