"""Functions that warps of a kernel are assigned to. Gluon's ``warp_specialize([(function, (argument, ...)), ...])``
calls them, and its list is read as one of calls: what a feature leaves dead in them can be told as in any other one.
"""

from __future__ import annotations

import ast

from .tree import rebuilt, replaced

_CALLER = "warp_specialize"
# What is in the source of every module that has such a list.
SPLITS_WARPS = _CALLER.encode()


def with_plain_calls(tree: ast.Module) -> ast.Module:
    """``tree`` where such lists are of calls."""

    def change(node: ast.AST) -> ast.AST:
        node = rebuilt(node, change)
        return _with_calls(node) if isinstance(node, ast.Call) else node

    return rebuilt(tree, change)


def _with_calls(call: ast.Call) -> ast.Call:
    named = isinstance(call.func, ast.Attribute) and call.func.attr == _CALLER
    if not named or not call.args or not isinstance(call.args[0], ast.List):
        return call
    listed = call.args[0]
    return replaced(call, args=[replaced(listed, elts=[_call(one) for one in listed.elts]), *call.args[1:]])


def _call(pair: ast.expr) -> ast.expr:
    match pair:
        case ast.Tuple(elts=[ast.Name() as function, ast.Tuple(elts=arguments)]):
            return ast.copy_location(ast.Call(func=function, args=arguments, keywords=[]), pair)
    return pair
