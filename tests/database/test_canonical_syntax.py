"""The text of a syntax tree: the same on every Python, another for every other program."""

from __future__ import annotations

import ast
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefetch_compiler.database.kernel_source.canonical import canonical

from .kernel_programs import program, write
from .test_kernel_program import AFTER, NEITHER

SCRIPT = Path(__file__).with_name("print_program.py")
OTHERS = [f"python3.{minor}" for minor in range(10, 15) if minor != sys.version_info.minor]


def test_what_versions_disagree_on_is_left_out() -> None:
    """``type_params`` came with 3.12; ``kind`` and contexts say nothing; some versions leave empty fields out."""
    signature = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    named: dict[str, Any] = {"name": "f", "args": signature, "body": [ast.Pass()], "decorator_list": []}
    plain = ast.FunctionDef(**named)
    full = ast.FunctionDef(**named)
    full.returns, full.type_comment = None, None
    full.type_params = []  # type: ignore[attr-defined,unused-ignore]
    assert canonical(plain) == canonical(full) == "FunctionDef(args=arguments(),body=[Pass(),],name='f',)"
    assert canonical(ast.Name("x", ast.Load())) == canonical(ast.Name("x", ast.Store())) == "Name(id='x',)"
    assert canonical(ast.Constant("a", kind="u")) == canonical(ast.Constant("a"))


def test_fields_that_a_version_adds_do_not_count_while_they_are_empty() -> None:
    class Newer(ast.Return):
        _fields = ("value", "added")

    Newer.__name__ = "Return"
    empty, listed, filled = (Newer(value=ast.Constant(1)) for _ in range(3))
    listed.added, filled.added = [], [ast.Constant(1)]  # type: ignore[attr-defined]
    assert canonical(empty) == canonical(listed) == canonical(ast.Return(ast.Constant(1)))
    assert canonical(filled) != canonical(empty)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1", "True"), ("1", "1.0"), ("0.0", "-0.0"), ("None", "0"), ("'1'", "1"), ("b'a'", "'a'"), ("''", "None"),
        ("f(a)", "f(a=a)"), ("f(*a)", "f(a)"), ("{**a}", "{a: a}"), ("{None: a}", "{**a}"), ("a[1:]", "a[:1]"),
        ("a[:]", "a[::1]"), ("(a, b)", "[a, b]"), ("a < b < c", "(a < b) < c"), ("a and b and c", "a and (b and c)"),
        ("lambda *, a, b=1: 0", "lambda *, a=1, b: 0"), ("lambda a, /: 0", "lambda a: 0"), ("f'{a}'", "f'{a!r}'"),
        ("f'{a:1}'", "f'{a}1'"), ("'x, y'", "'x', 'y'"), ("a.b", "a['b']"), ("...", "None"), ("'é'", "'e'"),
    ],
)  # fmt: skip
def test_other_expressions_have_other_texts(first: str, second: str) -> None:
    assert canonical(ast.parse(first)) != canonical(ast.parse(second))


def test_every_text_is_ascii() -> None:
    assert canonical(ast.parse("é = 'ü\U0001fae8'")).isascii()


@pytest.mark.parametrize("python", OTHERS)
def test_other_versions_of_python_agree(python: str, tmp_path: Path) -> None:
    """On kernels with whatever versions parse or print differently: f-strings, new characters, ``match``, ``with``."""
    if shutil.which(python) is None or subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"no {python} on PATH")
    odd = '''
        NAME = "é\\N{BULLET}\\U0001fae8" u"u" 'x'

        @triton.jit
        def helper(a, /, *rest, b: tl.constexpr = 1_000, **more) -> None:
            """Docstring
               of two lines."""
            match a:
                case [1, *others] | {"k": others, **more}:
                    return f"{a!r:>{b}} {{}} {b=}" f"{NAME}"
            with (a as c, b as d):
                return a[1:2, ::3, ...], -1, 1e400, 0x10, 1j, b"\\x00", lambda *, k=1: (yield)
    '''
    main = (
        AFTER["main"]
        .replace("tl.store(q_ptr, maximum)", "helper(maximum)")
        .replace("from .softmax", "from .odd import helper\n        from .softmax")
    )
    folder = write(tmp_path, **{**AFTER, "main": main, "odd": odd})
    done = subprocess.run([python, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=60, check=True)
    texts = [program(folder, **absent).text() for absent in ({}, NEITHER)]
    assert done.stdout.split() == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
