"""The import order that CONTRIBUTING.md promises: spec <- recognize <- database <- select <- lower <- backend, and what
follows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "prefetch_compiler"
SOURCE_FOLDERS = {PACKAGE: REPOSITORY / PACKAGE, f"{PACKAGE}.templates": REPOSITORY / "templates"}

# What may import only what stands before it.
ORDER = ("spec", "recognize", "database", "select", "lower", "backend")
# What a served model must never load: the search for configurations, and whatever only talks to people.
NOT_SERVING = ("tuning", "tracing", "bench", "demo", "db_command", "explain_command", "cli", "site_table")
NOT_SERVING_LIBRARIES = ("optuna", "typer", "rich", "transformers")


def module_name(path: Path, folder: Path, package: str) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join((package, *parts)).removesuffix(".__init__")


def imported_modules(source: str, module: str, is_package: bool) -> set[str]:
    """Absolute names that ``source`` imports at run time, inside functions too; type checkers' imports are left out."""
    return {name for node in _run_time_nodes(ast.parse(source)) for name in _names(node, module, is_package)}


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_time_nodes(node)


def _names(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = module.split(".")
            parents = parents[: len(parents) - node.level + is_package]
            base = ".".join([*parents, base]) if base else ".".join(parents)
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_of_package() -> dict[str, set[str]]:
    """Module -> what it imports, for every module of ours."""
    imports = {}
    for package, folder in SOURCE_FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            name = module_name(path, folder, package)
            imports[name] = imported_modules(path.read_text(), name, path.name == "__init__.py")
    return imports


IMPORTS = imports_of_package()


def part_of(module: str) -> str | None:
    """The first name below our package, as ``lower`` for ``prefetch_compiler.lower.launch``."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[0] == PACKAGE else None


def serving_modules() -> set[str]:
    """Every module of ours that is reached from the backend."""
    reached: set[str] = set()
    waiting = [f"{PACKAGE}.backend"]
    while waiting:
        module = waiting.pop()
        if module in reached or module not in IMPORTS:
            continue
        reached.add(module)
        waiting += IMPORTS[module]
    return reached


@pytest.mark.parametrize("module", sorted(m for m in IMPORTS if part_of(m) in ORDER))
def test_a_stage_imports_only_earlier_stages(module: str) -> None:
    position = ORDER.index(part_of(module) or "")
    later = {name for name in IMPORTS[module] if part_of(name) in ORDER[position + 1 :]}
    assert not later, f"{module} imports {sorted(later)}, which come after it in {' <- '.join(ORDER)}"


def test_the_backend_is_reached() -> None:
    assert f"{PACKAGE}.backend" in serving_modules()
    assert any(part_of(module) == "lower" for module in serving_modules())


@pytest.mark.parametrize("module", sorted(serving_modules()))
def test_serving_code_loads_neither_the_tuner_nor_the_command_line(module: str) -> None:
    ours = {name for name in IMPORTS[module] if part_of(name) in NOT_SERVING}
    libraries = {name for name in IMPORTS[module] if name.split(".")[0] in NOT_SERVING_LIBRARIES}
    assert not ours | libraries, f"{module} imports {sorted(ours | libraries)}"


@pytest.mark.parametrize("module", sorted(m for m in IMPORTS if part_of(m) == "templates"))
def test_templates_import_nothing_of_the_package(module: str) -> None:
    outside = {
        name for name in IMPORTS[module] if name.split(".")[0] == PACKAGE and part_of(name) not in (None, "templates")
    }
    assert not outside, f"{module} imports {sorted(outside)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ..lower import launch", "prefetch_compiler.lower.launch"),
        ("from .. import backend", "prefetch_compiler.backend"),
        ("def f():\n    import optuna.study", "optuna.study"),
        ("from prefetch_compiler.tuning.space import x", "prefetch_compiler.tuning.space"),
    ],
)
def test_the_reader_sees_every_way_to_import(source: str, expected: str) -> None:
    assert expected in imported_modules(source, "prefetch_compiler.select.heuristic", is_package=False)


def test_the_reader_leaves_out_what_only_type_checkers_import() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..backend import kvprefetch\n"
    assert imported_modules(source, "prefetch_compiler.select.heuristic", is_package=False) == {
        "typing",
        "typing.TYPE_CHECKING",
    }


def test_the_reader_resolves_a_package_from_itself() -> None:
    assert "prefetch_compiler.select.key" in imported_modules(
        "from . import key", "prefetch_compiler.select", is_package=True
    )
