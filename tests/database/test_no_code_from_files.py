"""Nothing in the database code turns a file's content into code, a command, or a path."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from prefetch_compiler import database

FOLDER = Path(database.__file__).parent
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml", "jsonpickle", "subprocess",
    "pty", "ctypes", "code", "runpy",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "import_module", "system", "popen", "Popen"}
FORBIDDEN_ATTRIBUTES = FORBIDDEN_NAMES - {"compile"} | {"spawn", "spawnl", "execv", "load_module"}


def complaints(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names if alias.name in FORBIDDEN_NAMES - {"compile"}]
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            found.append(node.attr)
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            found.append("shell=")
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_is_run_that_a_file_says(path: Path) -> None:
    assert complaints(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import yaml.cyaml",
        "eval('1')",
        "f = exec",
        "os.system('ls')",
        "run('ls', shell=True)",
        "builtins.eval('1')",
        "importlib.import_module(name)",
        "from importlib import import_module as load",
    ],
)
def test_the_check_sees_what_it_is_for(source: str) -> None:
    assert complaints(source)
