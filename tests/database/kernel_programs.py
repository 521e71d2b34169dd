"""Small templates written to a folder, and what is left of them."""

from __future__ import annotations

import ast
from pathlib import Path
from textwrap import dedent
from typing import Any

from prefetch_compiler.database.kernel_source.folding import Value
from prefetch_compiler.database.kernel_source.modules import Sources
from prefetch_compiler.database.kernel_source.program import Program

HEAD = "import triton\nimport triton.language as tl\n"


def program(folder: Path, entries: tuple[str, ...] = ("main.kernel",), /, **absent: Value) -> Program:
    return Program(Sources(folder), entries, absent)


def write(folder: Path, **modules: str) -> Path:
    """``modules`` in ``folder``, each with Triton's imports at its head."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(HEAD + dedent(source))
    return folder


def source_of(left: Program) -> dict[str, str]:
    """What is left of each definition, to be read."""
    return {name: ast.unparse(ast.fix_missing_locations(node)) for name, node in left.definitions().items()}


def run(nodes: list[ast.stmt], **names: Any) -> dict[str, Any]:
    """The globals after ``nodes``; decorators and annotations mean nothing."""

    class Anything:
        jit = staticmethod(lambda function: function)
        constexpr = None

    scope: dict[str, Any] = {"triton": Anything, "tl": Anything, **names}
    exec(compile(ast.fix_missing_locations(ast.Module(nodes, [])), "<left>", "exec"), scope)
    return scope
