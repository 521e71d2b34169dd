"""A syntax tree as text that is equal on every version of Python.

``ast.dump`` and ``ast.unparse`` write the same tree differently from version to version, and each version adds fields
that old sources leave empty. Hence: fields in the order of their names, empty ones left out, literals in ASCII.
"""

from __future__ import annotations

import ast

# What says nothing about a program: whether a name is read or written follows from its place; ``u`` of ``u"text"``.
_IGNORED = frozenset({"ctx", "kind"})


def canonical(node: object) -> str:
    """One line; two trees have the same one only if they are the same but for places, contexts and string prefixes."""
    parts: list[str] = []
    _write(node, parts)
    return "".join(parts)


def _write(value: object, parts: list[str]) -> None:
    if isinstance(value, ast.Constant):
        parts += (type(value.value).__name__, ":", ascii(value.value))
    elif isinstance(value, ast.AST):
        parts += (type(value).__name__, "(")
        for name in sorted(value._fields):
            field = getattr(value, name, None)
            if isinstance(value, ast.JoinedStr):
                # 3.12 ends some format specifications with an empty text.
                field = [one for one in value.values if not (isinstance(one, ast.Constant) and one.value == "")]
            if field is not None and field != [] and name not in _IGNORED:
                parts += (name, "=")
                _write(field, parts)
                parts.append(",")
        parts.append(")")
    elif isinstance(value, list):
        parts.append("[")
        for element in value:
            _write(element, parts)
            parts.append(",")
        parts.append("]")
    else:
        parts.append(ascii(value))
