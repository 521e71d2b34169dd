"""Calls of a function that lost parameters: what they pass for them, and the calls without it."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping

from .folding import Value, is_constant, same_value
from .functions import default_of, parameters
from .tree import rebuilt, replaced


def wrongly_passed(
    call: ast.Call, function: ast.FunctionDef, removed: Collection[str], absent: Mapping[str, Value]
) -> frozenset[str]:
    """Those of the ``removed`` parameters of ``function`` for which ``call`` may pass another value than the one that
    means "absent"."""
    passed = _passed(call, function)
    if passed is None:
        return frozenset(removed)
    return frozenset(
        name for name in removed if not _is_value(passed.get(name, default_of(function, name)), absent[name])
    )


def _passed(call: ast.Call, function: ast.FunctionDef) -> dict[str, ast.expr] | None:
    """Arguments by parameter; None where that cannot be told."""
    positional = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    unpacked = any(isinstance(one, ast.Starred) for one in call.args) or any(one.arg is None for one in call.keywords)
    if unpacked or len(call.args) > len(positional):
        return None
    return {
        **dict(zip(positional, call.args, strict=False)),
        **{one.arg: one.value for one in call.keywords if one.arg is not None},
    }


def _is_value(node: ast.expr | None, value: Value) -> bool:
    return isinstance(node, ast.Constant) and is_constant(node) and same_value(node.value, value)  # type: ignore[arg-type]


def without_arguments(
    node: ast.FunctionDef, calls: Mapping[ast.Call, tuple[ast.FunctionDef, Collection[str]]]
) -> ast.FunctionDef:
    """``node`` where ``calls``, each of a function and parameters that it lost, no longer pass these."""

    def change(one: ast.AST) -> ast.AST:
        if isinstance(one, ast.Call) and one in calls:
            one = _shortened(one, *calls[one])
        return rebuilt(one, change)

    return replaced(node, body=[change(statement) for statement in node.body])


def _shortened(call: ast.Call, function: ast.FunctionDef, removed: Collection[str]) -> ast.Call:
    return replaced(
        call,
        args=[one for one, name in zip(call.args, parameters(function), strict=False) if name not in removed],
        keywords=[one for one in call.keywords if one.arg not in removed],
    )
