"""What a statement of a module takes from outside: global names, its calls of them, and what it imports itself."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from .tree import SCOPES, children, names_bound_by


@dataclass
class References:
    """``calls`` are calls of a global name in a function's own body, where nothing in the function binds that name;
    ``values`` are the global names that are used in any other way; ``imports`` are of import statements inside."""

    values: set[str] = field(default_factory=set)
    calls: list[tuple[str, ast.Call]] = field(default_factory=list)
    imports: list[tuple[ast.Import | ast.ImportFrom, ast.alias]] = field(default_factory=list)


def references(node: ast.stmt) -> References:
    """Of a module's statement. A function's variables are left out; those of functions inside it are not, because the
    name may be either."""
    found = References()
    if not isinstance(node, ast.FunctionDef):
        _collect([node], found)
        found.values |= {name for name, _ in found.calls}
        found.calls.clear()
        return found
    inside = References()
    own, inner = _collect(node.body, inside)
    own |= {one.arg for one in _arguments(node.args)}
    # Decorators, defaults and annotations are evaluated in the module.
    _collect([*node.decorator_list, node.args, *([node.returns] if node.returns else [])], found)
    found.values |= {name for name, _ in found.calls} | (inside.values - own)
    found.values |= {name for name, _ in inside.calls if name in inner and name not in own}
    found.calls = [(name, call) for name, call in inside.calls if name not in inner and name not in own]
    found.imports += inside.imports
    return found


def _collect(nodes: list[ast.stmt] | list[ast.AST], found: References) -> tuple[set[str], set[str]]:
    """Adds all that is used in ``nodes``. Returns the names bound there, and those bound in scopes inside them."""
    own: set[str] = set()
    inner: set[str] = set()
    waiting: list[tuple[ast.AST, bool]] = [(node, False) for node in nodes]
    while waiting:
        node, nested = waiting.pop()
        (inner if nested else own).update(names_bound_by(node))
        inside = nested or isinstance(node, SCOPES)
        if isinstance(node, ast.Name):
            found.values.add(node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.calls.append((node.func.id, node))
            waiting += [(one, inside) for one in (*node.args, *node.keywords)]
        else:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.imports += [(node, alias) for alias in node.names]
            waiting += [(one, inside) for one in children(node)]
    return own, inner


def _arguments(signature: ast.arguments) -> list[ast.arg]:
    others = [one for one in (signature.vararg, signature.kwarg) if one is not None]
    return [*signature.posonlyargs, *signature.args, *signature.kwonlyargs, *others]
