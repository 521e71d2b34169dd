"""The global names that a piece of a module mentions, and whether it calls them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from .tree import bound_names


@dataclass(frozen=True, eq=False)
class Mention:
    """``call`` is the call that the name is the function of; None where the name is used in any other way."""

    name: str
    call: ast.Call | None = None


def mentions(node: ast.stmt) -> list[Mention]:
    """Of a module's statement, a function among them: what it may take from outside, each name once beside its calls.

    Variables of a function itself are left out; those of functions inside it are not, because the name may be either.
    Calls are told apart in the body of a function alone, and only where nothing in it binds the name.
    """
    if not isinstance(node, ast.FunctionDef):
        return [Mention(name) for name in _used(node)]
    signature = node.args
    own = {one.arg for one in _arguments(signature)}
    own.update(name for statement in node.body for name in bound_names(statement, nested=False))
    inner = {name for statement in node.body for name in bound_names(statement, nested=True)}
    # Decorators, defaults and annotations are evaluated in the module.
    outer = (*node.decorator_list, signature, *([node.returns] if node.returns else []))
    values = {name for one in outer for name in _used(one)}
    calls = []
    for name, call in _in_body(node.body):
        if name in own:
            continue
        if call is not None and name not in inner:
            calls.append(Mention(name, call))
        else:
            values.add(name)
    return [*(Mention(name) for name in sorted(values)), *calls]


def imports(node: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, ast.alias]]:
    """Every name that is imported anywhere in ``node``."""
    for one in ast.walk(node):
        if isinstance(one, ast.Import | ast.ImportFrom):
            for alias in one.names:
                yield one, alias


def _arguments(signature: ast.arguments) -> list[ast.arg]:
    others = [one for one in (signature.vararg, signature.kwarg) if one is not None]
    return [*signature.posonlyargs, *signature.args, *signature.kwonlyargs, *others]


def _used(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _in_body(body: list[ast.stmt]) -> Iterator[tuple[str, ast.Call | None]]:
    waiting: list[ast.AST] = list(body)
    while waiting:
        one = waiting.pop()
        if isinstance(one, ast.Name):
            yield one.id, None
        elif isinstance(one, ast.Call) and isinstance(one.func, ast.Name):
            yield one.func.id, one
            waiting += [*one.args, *one.keywords]
        else:
            waiting += ast.iter_child_nodes(one)
