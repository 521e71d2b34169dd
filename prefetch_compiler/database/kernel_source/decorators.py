"""Decorators of a kernel. ``triton.jit(do_not_specialize=[...])`` lists parameters by name, often in a constant of the
module: a feature's parameters are on that list too, and leave it with the feature.
"""

from __future__ import annotations

import ast
from collections.abc import Collection

from .modules import Sources, Statement
from .tree import rebuilt, replaced

# Of Triton: what leaves a function's parameters what they are.
_KNOWN = frozenset({"jit", "constexpr_function"})


def decorators(sources: Sources, statement: Statement, removed: Collection[str]) -> list[ast.expr]:
    """Of a function that lost the parameters ``removed``: with lists of names written out, and without those names."""
    assert isinstance(statement.node, ast.FunctionDef)

    def change(node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Name):
            written = _list_of(sources, statement.module, node.id)
            return node if written is None else change(written)
        node = rebuilt(node, change)
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return replaced(node, elts=[one for one in node.elts if not _is_one_of(one, removed)])
        return node

    return [change(one) for one in statement.node.decorator_list]  # type: ignore[misc]


def _list_of(sources: Sources, module: str, name: str) -> ast.expr | None:
    """The list that ``name`` is a constant for, if it is one."""
    meaning = sources.meaning(module, name)
    if not meaning.plain or len(meaning.statements) != 1:
        return None
    node = meaning.statements[0].node
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if isinstance(value, ast.List | ast.Tuple | ast.Set) and all(isinstance(one, ast.Constant) for one in value.elts):
        return value
    return None


def _is_one_of(node: ast.expr, names: Collection[str]) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names


def may_lose_parameters(sources: Sources, statement: Statement) -> bool:
    """Whether its decorators are known to leave parameters alone, and name them, if at all, and do not count them."""
    assert isinstance(statement.node, ast.FunctionDef)
    return all(map(_is_known, decorators(sources, statement, ())))


def _is_known(decorator: ast.expr) -> bool:
    call = decorator if isinstance(decorator, ast.Call) else None
    root = decorator if call is None else call.func
    name = root.attr if isinstance(root, ast.Attribute) else root.id if isinstance(root, ast.Name) else ""
    given = [] if call is None else [*call.args, *(one.value for one in call.keywords)]
    return name in _KNOWN and all(map(_names_parameters, given))


def _names_parameters(node: ast.expr) -> bool:
    """Whether ``node`` holds no number: it might count parameters."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return all(map(_names_parameters, node.elts))
    if isinstance(node, ast.BinOp):
        return _names_parameters(node.left) and _names_parameters(node.right)
    return isinstance(node, ast.Constant) and isinstance(node.value, None | bool | str)
