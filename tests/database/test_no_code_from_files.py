"""Nothing in the package turns a file's content into code, a command, or a path to import from."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("prefetch_compiler", "templates") for path in (REPOSITORY / folder).rglob("*.py"))
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml", "jsonpickle", "joblib",
    "subprocess", "pty", "ctypes", "cffi", "code", "codeop", "runpy", "imp", "xmlrpc", "socketserver", "http", "ftplib",
    "urllib.request", "requests", "httpx", "aiohttp",
}  # fmt: skip
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "import_module", "system", "popen", "Popen"}
FORBIDDEN_ATTRIBUTES = FORBIDDEN_NAMES - {"compile", "eval"} | {
    "spawn", "spawnl", "spawnv", "execv", "execve", "execvp", "posix_spawn", "load_module", "exec_module",
    "spec_from_file_location", "SourceFileLoader", "torch.load", "jit.load", "numpy.load", "np.load",
    "cpp_extension.load",
}  # fmt: skip
FORBIDDEN_KEYWORDS = {"shell", "allow_pickle", "weights_only", "executable"}
# What needs one of these, and why no file's content reaches it.
ALLOWED: dict[str, dict[str, str]] = {
    "templates/manifest.py": {"import_module": "a template's own entries, which are literals in that file"},
    "prefetch_compiler/bench/kernel/peers/peer.py": {"import_module": "names of peers, literals of their adapters"},
    "prefetch_compiler/bench/kernel/peers/xformers_splitk.py": {"import_module": "a literal"},
    "prefetch_compiler/lower/precompile.py": {"subprocess": "the assembler that Triton bundles; arguments in a list"},
    "prefetch_compiler/demo/device_choice.py": {"execv": "the demo starts itself anew, in the interpreter"},
    "prefetch_compiler/bench/environment.py": {"subprocess": "nvidia-smi; literals in a list"},
    "prefetch_compiler/bench/compile_time.py": {"subprocess": "this Python on a module of ours"},
    "prefetch_compiler/bench/paper/ncu.py": {"subprocess": "the profiler on this Python"},
    "prefetch_compiler/tuning/contained.py": {
        "ctypes": "prctl(2): a worker dies with its parent",
        "subprocess": "a guard of a process group; literals in a list",
        "Popen": "the same",
    },
}


def forbidden_module(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: n + 1]) in FORBIDDEN_MODULES for n in range(len(parts)))


def complaints(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if forbidden_module(alias.name)]
        elif isinstance(node, ast.ImportFrom) and not node.level and forbidden_module(node.module or ""):
            found.append(str(node.module))
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names if not node.level}
            found += sorted(filter(forbidden_module, names))
            found += [alias.name for alias in node.names if alias.name in FORBIDDEN_NAMES - {"compile"}]
            found += sorted(names & FORBIDDEN_ATTRIBUTES)
        elif isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append(node.id)
        elif isinstance(node, ast.Attribute):
            found += _attribute_complaints(node)
        elif isinstance(node, ast.keyword) and node.arg in FORBIDDEN_KEYWORDS:
            found.append(f"{node.arg}=")
    return found


def _attribute_complaints(node: ast.Attribute) -> list[str]:
    owner = ast.unparse(node.value)
    ends = {node.attr, f"{owner.split('.')[-1]}.{node.attr}"}
    # A module's eval() is torch's; the builtin by way of its module is not.
    return sorted(ends & FORBIDDEN_ATTRIBUTES) or ([node.attr] if owner == "builtins" else [])


def test_nothing_is_run_that_a_file_says() -> None:
    found = {str(path.relative_to(REPOSITORY)): set(complaints(path.read_text())) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {p: set(names) for p, names in ALLOWED.items()}


def test_the_database_needs_no_exception() -> None:
    assert not [path for path in ALLOWED if path.startswith(("prefetch_compiler/database", "prefetch_compiler/select"))]


def test_the_whole_package_is_read() -> None:
    assert len(SOURCES) > 200
    assert {str(path.relative_to(REPOSITORY)) for path in SOURCES} >= ALLOWED.keys()


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
        "from urllib import request",
        "import urllib.request",
        "import http.client",
        "torch.load(path)",
        "from torch import load",
        "np.load(path)",
        "read(path, allow_pickle=True)",
        "torch.jit.load(path)",
        "importlib.util.spec_from_file_location(name, path)",
        "os.execv(path, [])",
        "loader.exec_module(module)",
    ],
)
def test_the_check_sees_what_it_is_for(source: str) -> None:
    assert complaints(source)


@pytest.mark.parametrize(
    "source", ["model.eval()", "torch.compile(f)", "re.compile(x)", "from .code import x", "json.load(f)"]
)
def test_the_check_leaves_other_things_alone(source: str) -> None:
    assert complaints(source) == []
