"""Folding: what a program without its absent features computes, and calls on the way, is what it did with them off."""

from __future__ import annotations

import ast
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_compiler.database.kernel_source.folding import Value, folded

from .kernel_programs import HEAD, program, run, source_of, write

ABSENT: dict[str, Value] = {"F": False, "G": True, "P": None, "W": 0, "M": "none"}


def fold(source: str, **values: Value) -> str:
    body = folded(ast.parse(source).body, values)
    return ast.unparse(ast.fix_missing_locations(ast.Module(body, [])))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a if F else b", "x = b"),
        ("x = F and a", "x = False"),
        ("x = G and a and b", "x = a and b"),
        ("x = a > 1 and F", "x = False"),
        ("x = not F", "x = True"),
        ("x = -W == 0", "x = True"),
        ("x = P is None", "x = True"),
        ("x = P is not None", "x = False"),
        ("x = M == 'bool'", "x = False"),
        ("x = M in ('none', 'bool')", "x = True"),
        ("x = M not in ['none']", "x = False"),
        ("x = W > 0", "x = False"),
        ("x = W <= 0 or a", "x = True"),
        ("if F:\n    f()", ""),
        ("if F:\n    f()\nelif a:\n    g()\nelse:\n    h()", "if a:\n    g()\nelse:\n    h()"),
        ("if a:\n    f()\nelif F:\n    g()\nelse:\n    h()", "if a:\n    f()\nelse:\n    h()"),
        ("if a and F:\n    f()", ""),
        ("if a or F:\n    f()", "if a:\n    f()"),
        ("if a and G and not (b and F):\n    f()", "if a:\n    f()"),
        ("if f() and F and g():\n    h()", "if f() and False:\n    h()"),
        ("if a > 0:\n    if F:\n        f()", ""),
        ("for i in r:\n    if F:\n        f()", "for i in r:\n    pass"),
        ("while F:\n    f()\nelse:\n    g()", "g()"),
        ("if G:\n    return a\nf()", "return a"),
        ("f(W, x=P)[W:M]", "f(0, x=None)[0:'none']"),
    ],
)
def test_what_is_certain_is_folded(source: str, expected: str) -> None:
    assert fold(source, **ABSENT) == expected


@pytest.mark.parametrize(
    "source",
    [
        "x = a and {F}",
        "x = a or {G}",
        "x = a and {G}",
        "x = a or {F}",
        "x = f() and {F}",
        "x = a < {W} < b",
        "x = a == {W}",
        "x = a in ({W}, {P})",
        "x = {W} in (a, {W})",
        "x = {M} in 'none of it'",
        "x = {M} is 'none'",
        "x = {W} is 0",
        "x = {M} < {W}",
        "x = {W} + 1",
        "x = {F} & a",
        "while {G}:\n    f()",
        "if f():\n    pass",
        "assert {F}",
        "x: int = {W}",
    ],
)
def test_what_is_not_certain_stays(source: str) -> None:
    names = {name: name for name in ABSENT}
    literals = {name: repr(value) for name, value in ABSENT.items()}
    assert fold(source.format(**names), **ABSENT) == source.format(**literals)


@pytest.mark.filterwarnings("ignore:.*is.* with .*literal")
@pytest.mark.parametrize(
    ("first", "second"), list(itertools.permutations([None, False, True, 0, 1, -1, 1.0, 0.0, "", "0"], 2))
)
@pytest.mark.parametrize("operation", ["A == B", "A != B", "A is B", "A in (B, 7)", "not A", "A and B", "A or B", "-A"])
def test_constants_fold_as_python_evaluates_them(first: Value, second: Value, operation: str) -> None:
    text = fold(f"x = {operation}", A=first, B=second)
    scope: dict[str, Any] = {}
    if operation == "-A" and not isinstance(first, int | float):
        assert text == f"x = -{first!r}"
        return
    exec(text, scope)
    expected = eval(operation, {"A": first, "B": second})
    assert repr(scope["x"]) == repr(expected)


# Programs. ``note`` is a call that is seen; a, b and n are what the kernel is launched with.

atoms = st.sampled_from([
    "F", "G", "P is None", "P is not None", "W > 0", "W == 0", "M == 'none'", "M in ('bool', 'none')", "M != 'none'",
    "C", "D", "a > b", "a", "n is None", "note(a) > 1", "u == 2", "not u", "True", "0", "W",
])  # fmt: skip
conditions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda one: f"(not {one})"),
        st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} if {parts[1]} else {parts[2]})"),
    ),
    max_leaves=5,
)
calls = st.sampled_from([
    "helper(u, F, W)", "helper(v, W=W, F=F)", "helper(u, F)", "helper(a)", "helper(u, False, 0)", "helper(b, F, W=W)",
])  # fmt: skip
# Any one of these in reach makes the helper keep a parameter.
odd_calls = st.sampled_from(["helper(u, True, W)", "helper(u, F, u)", "helper(u, a > b)", "helper(*[u, F])"])
values = st.one_of(st.sampled_from(["a", "b", "u", "v + 1", "note(u)", "W + a", "7"]), calls, conditions)
simple = st.one_of(
    st.tuples(st.sampled_from(["u", "v"]), values).map(lambda parts: [f"{parts[0]} = {parts[1]}"]),
    values.map(lambda value: [f"note({value})"]),
    st.sampled_from([["n = a"], ["n = None"], ["pass"], ["W = W + 1"], ["P = a"], ["'text'"]]),
    odd_calls.map(lambda call: [f"u = {call}"]),
    conditions.map(lambda result: [f"return {result}"]),
)


def indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def blocks(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    body = st.lists(inner, min_size=1, max_size=3).map(lambda parts: [line for part in parts for line in part])
    loops = st.sampled_from([[], ["if F:", "    break"], ["if a > b:", "    continue"]])
    return st.one_of(
        st.tuples(conditions, body).map(lambda p: [f"if {p[0]}:", *indented(p[1])]),
        st.tuples(conditions, body, body).map(lambda p: [f"if {p[0]}:", *indented(p[1]), "else:", *indented(p[2])]),
        st.tuples(conditions, body, conditions, body).map(
            lambda p: [f"if {p[0]}:", *indented(p[1]), f"elif {p[2]}:", *indented(p[3])]
        ),
        st.tuples(loops, body).map(lambda p: ["for i in range(2):", *indented([*p[0], *p[1]])]),
        body.map(lambda lines: ["while W:", *indented([*lines, "break"])]),
    )


bodies = st.lists(st.recursive(simple, blocks, max_leaves=6), min_size=1, max_size=5).map(
    lambda parts: [line for part in parts for line in part]
)


def source(first: str, second: str, body: list[str], helper: list[str]) -> str:
    lines = [
        "@triton.jit",
        "def leaf(a, F: tl.constexpr = False, W: tl.constexpr = 0):",
        "    return 2 * a if F else a + W",
        "@triton.jit",
        "def helper(a, F: tl.constexpr = False, W: tl.constexpr = 0):",
        "    G, P, M, C, D, b, u, v, n = True, None, 'none', False, True, 1, a, a, None",
        *indented([line.replace("helper", "leaf") for line in helper]),
        "    return u - v",
        "@triton.jit",
        "def kernel(a, F: tl.constexpr, b, P, G: tl.constexpr, W: tl.constexpr = 0, M: tl.constexpr = 'none'):",
        f"    C: tl.constexpr = {first}",
        f"    D: tl.constexpr = {second}",
        "    u = v = a",
        "    n = None",
        *indented(body),
        "    return u, v, n, W",
    ]
    return "\n".join(lines)


pure = st.sampled_from(["F or G", "F", "W > 0 or not F", "P is None and G", "M == 'bool'", "a > 1", "3"])


@settings(max_examples=400, deadline=None)
@given(pure, pure, bodies, bodies)
def test_a_folded_program_does_what_it_did_with_its_features_off(
    first: str, second: str, body: list[str], helper: list[str]
) -> None:
    text = source(first, second, body, helper)
    with tempfile.TemporaryDirectory() as folder:
        left = program(write(Path(folder), main=text), **ABSENT)
    definitions = left.definitions()
    kernel = definitions["kernel"]
    assert isinstance(kernel, ast.FunctionDef)
    kept = {one.arg for one in kernel.args.args}
    for a, b in ((0, 0), (1, 0), (2, 3)):
        before = outcome(ast.parse(HEAD + text).body[2:], {"a": a, "b": b, **ABSENT})
        arguments = {name: value for name, value in {"a": a, "b": b, **ABSENT}.items() if name in kept}
        after = outcome(list(definitions.values()), arguments)
        assert repr(before) == repr(after), "\n\n".join([text, *source_of(left).values()])


def outcome(nodes: list[ast.stmt], arguments: dict[str, Any]) -> tuple[Any, list[Any]]:
    """What ``kernel`` returns, and what it called ``note`` with."""
    noted: list[Any] = []

    def note(value: Any) -> int:
        noted.append(value)
        return len(noted)

    return run(nodes, note=note)["kernel"](**arguments), noted
