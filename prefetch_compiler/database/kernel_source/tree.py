"""Syntax trees that are not changed in place: parsed modules are shared between specialisations."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Node = TypeVar("Node", bound=ast.AST)

# What has variables of its own.
SCOPES = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip
_BINDERS = (
    ast.Name, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.arg, ast.alias, ast.ExceptHandler,
    ast.MatchAs, ast.MatchStar, ast.MatchMapping,
)  # fmt: skip
_LEAVES = (ast.Name, ast.Constant, ast.operator, ast.cmpop, ast.boolop, ast.unaryop, ast.expr_context)


def children(node: ast.AST) -> list[ast.AST]:
    """But for those that have neither names nor children: ``ast.iter_child_nodes`` takes three times as long."""
    if isinstance(node, _LEAVES):
        return []
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if type(value) is list:
            found += [one for one in value if isinstance(one, ast.AST)]
        elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
            found.append(value)
    return found


def walk(node: ast.AST) -> Iterator[ast.AST]:
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children(one)


def replaced(node: Node, **fields: Any) -> Node:
    """``node`` with other values in some of its fields; its place in the source stays."""
    present = {name: getattr(node, name) for name in (*node._fields, *node._attributes) if hasattr(node, name)}
    return type(node)(**{**present, **fields})


def rebuilt(node: Node, change: Callable[[ast.AST], ast.AST]) -> Node:
    """``node`` with each of its children changed; ``node`` itself where no child is."""
    changed: dict[str, Any] = {}
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            child = change(value)
            if child is not value:
                changed[name] = child
        elif isinstance(value, list) and value:
            children = [change(one) if isinstance(one, ast.AST) else one for one in value]
            if any(new is not old for new, old in zip(children, value, strict=True)):
                changed[name] = children
    return replaced(node, **changed) if changed else node


def bound_names(node: ast.AST, *, nested: bool) -> Iterator[str]:
    """Names that ``node`` binds or deletes, once for each time.

    Args:
        nested: also what functions, lambdas, classes and comprehensions inside it bind for themselves.
    """
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield from names_bound_by(one)
        if nested or not isinstance(one, SCOPES):
            waiting += children(one)


def names_bound_by(node: ast.AST) -> Iterable[str]:
    """By this node alone, not by its children."""
    if not isinstance(node, _BINDERS):
        return ()
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            return (name,)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
            return (name,)
        case ast.alias(name=name, asname=asname):
            return (asname or name.split(".")[0],)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return (name,)
        case ast.MatchMapping(rest=str(name)):
            return (name,)
    return ()
