"""A template's program: a feature that is off leaves it as it was, and whatever can be reached without it counts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from prefetch_compiler.database.errors import TemplateSourceError

from .kernel_programs import program, run, source_of, write

BEFORE = {
    "main": '''
        """Attention."""
        from triton.language.extra.cuda import gdc_wait
        from .softmax import online_softmax

        _INTEGERS = ["q_len", "kv_len"]

        @triton.jit
        def attend(q, k, maximum, BLOCK: tl.constexpr):
            """One tile."""
            scores = q * k
            # Largest first.
            return online_softmax(scores, maximum, BLOCK)

        @triton.jit(do_not_specialize=_INTEGERS)
        def kernel(q_ptr, k_ptr, q_len, kv_len, BLOCK: tl.constexpr, TMA: tl.constexpr):
            """Grid (batch,)."""
            gdc_wait()
            maximum = 0.0
            for first in range(0, kv_len, BLOCK):
                if TMA:
                    maximum = attend(q_ptr, k_ptr + first, maximum, BLOCK)
                else:
                    maximum = attend(q_ptr, k_ptr, maximum, BLOCK=BLOCK)
            tl.store(q_ptr, maximum)
    ''',
    "softmax": """
        LIMIT = 5

        @triton.jit
        def online_softmax(scores, maximum, BLOCK: tl.constexpr):
            return tl.maximum(scores, maximum) + LIMIT + BLOCK
    """,
}
# Soft-capped scores, and sinks: constants, a scalar, a pointer and its stride, new helpers, a new module, new branches.
AFTER = {
    "main": '''
        """Attention, with sinks."""
        from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
        from .sinks import first_maximum
        from .softmax import capped, online_softmax

        _INTEGERS = ["q_len", "sink_stride", "kv_len"]

        @triton.jit
        def attend(q, k, maximum, cap, BLOCK: tl.constexpr, SOFTCAP: tl.constexpr = False):
            scores = q * k
            if SOFTCAP:
                scores = capped(scores, cap)
            return online_softmax(scores, maximum, BLOCK)

        @triton.jit(do_not_specialize=_INTEGERS)
        def kernel(
            q_ptr, k_ptr, sinks_ptr, q_len, sink_stride, kv_len, cap,
            BLOCK: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, TMA: tl.constexpr,
        ):
            gdc_wait()
            ANY: tl.constexpr = SOFTCAP or SINKS
            if ANY and not TMA:
                gdc_launch_dependents()
            sink = None
            if SINKS:
                sink = tl.load(sinks_ptr + sink_stride)
            maximum = first_maximum(sink, sink_stride) if sinks_ptr is not None else 0.0
            for first in range(0, kv_len, BLOCK):
                if SINKS and SOFTCAP:
                    tl.static_assert(TMA)
                elif TMA:
                    maximum = attend(q_ptr, k_ptr + first, maximum, cap, BLOCK, SOFTCAP)
                else:
                    maximum = attend(q_ptr, k_ptr, maximum, BLOCK=BLOCK, cap=cap, SOFTCAP=SOFTCAP)
                if TMA:
                    if SINKS:
                        maximum = maximum + 1
            tl.store(q_ptr, maximum)
    ''',
    "softmax": """
        LIMIT = 5
        CAP = 7

        @triton.jit
        def capped(scores, cap):
            return cap * tl.tanh(scores / cap) + CAP

        @triton.jit
        def online_softmax(scores, maximum, BLOCK: tl.constexpr):
            return tl.maximum(scores, maximum) + LIMIT + BLOCK
    """,
    "sinks": """
        @triton.jit
        def first_maximum(sink, sink_stride):
            return sink + sink_stride
    """,
}
SOFTCAP = {"SOFTCAP": False, "cap": None}
SINKS = {"SINKS": False, "sinks_ptr": None, "sink_stride": None}
NEITHER = {**SOFTCAP, **SINKS}


def edited(folder: Path, module: str, old: str, new: str) -> Path:
    source = AFTER[module]
    assert source.count(old) == 1, old
    return write(folder, **{**AFTER, module: source.replace(old, new)})


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write(tmp_path / "before", **BEFORE)


@pytest.fixture
def after(tmp_path: Path) -> Path:
    return write(tmp_path / "after", **AFTER)


def test_features_that_are_off_leave_the_program_as_it_was(before: Path, after: Path) -> None:
    assert source_of(program(after, **NEITHER)) == source_of(program(before))
    assert program(after, **NEITHER).text() == program(before).text()


def test_every_feature_that_is_on_is_another_program(before: Path, after: Path) -> None:
    texts = [program(after, **absent).text() for absent in ({}, SOFTCAP, SINKS, NEITHER)]
    assert len(set(texts)) == 4


def test_nothing_of_an_absent_feature_is_left(after: Path) -> None:
    left = source_of(program(after, **NEITHER))
    assert left.keys() == {"kernel", "attend", "online_softmax", "LIMIT"}
    assert not any(word in "".join(left.values()) for word in ("SOFTCAP", "SINKS", "cap", "sink", "launch", "ANY"))


# What only a program with the feature has: (module, a line, another one).
OF_SOFTCAP = [
    ("softmax", "tl.tanh(scores / cap)", "tl.tanh(scores * cap)"),
    ("softmax", "CAP = 7", "CAP = 8"),
    ("main", "scores = capped(scores, cap)", "scores = capped(scores, cap) + 1"),
]
OF_SINKS = [
    ("sinks", "sink + sink_stride", "sink - sink_stride"),
    ("main", "tl.load(sinks_ptr + sink_stride)", "tl.load(sinks_ptr)"),
    ("main", "maximum = maximum + 1", "maximum = maximum + 2"),
]
OF_ALL = [
    ("main", "gdc_wait()", "pass"),
    ("main", "sinks_ptr is not None else 0.0", "sinks_ptr is not None else 1.0"),
    ("main", "scores = q * k", "scores = q + k"),
    ("main", "BLOCK=BLOCK, cap", "BLOCK=1, cap"),
    ("main", "tl.store(q_ptr, maximum)", "tl.store(k_ptr, maximum)"),
    ("main", "elif TMA:", "elif not TMA:"),
    ("main", '["q_len", "sink_stride", "kv_len"]', '["sink_stride", "kv_len"]'),
    ("main", "@triton.jit(do_not_specialize=_INTEGERS)", "@triton.jit(do_not_specialize=_INTEGERS, debug=True)"),
    ("main", "first in range(0, kv_len", "first in tl.range(0, kv_len"),
    ("main", "from triton.language.extra.cuda", "from triton.language.extra.hip"),
    ("softmax", "LIMIT = 5", "LIMIT = 6"),
    ("softmax", "maximum) + LIMIT + BLOCK", "maximum) + LIMIT - BLOCK"),
]
OF_BOTH = [("main", "tl.static_assert(TMA)", "tl.static_assert(not TMA)")]


@pytest.mark.parametrize(
    ("edit", "softcap", "sinks"),
    [
        *((edit, True, False) for edit in OF_SOFTCAP),
        *((edit, False, True) for edit in OF_SINKS),
        *((edit, None, None) for edit in OF_ALL),
        *((edit, True, True) for edit in OF_BOTH),
    ],
)
def test_an_edit_counts_for_those_who_can_reach_it(
    edit: tuple[str, str, str], softcap: bool | None, sinks: bool | None, tmp_path: Path, after: Path
) -> None:
    """``softcap`` and ``sinks``: what must be on for the edit to matter; None: nothing."""
    changed = edited(tmp_path / "changed", *edit)
    for has_softcap in (False, True):
        for has_sinks in (False, True):
            absent = {**({} if has_softcap else SOFTCAP), **({} if has_sinks else SINKS)}
            matters = (softcap or False) <= has_softcap and (sinks or False) <= has_sinks
            same = program(changed, **absent).text() == program(after, **absent).text()
            assert same is not matters, absent


def test_comments_docstrings_formatting_and_places_do_not_count(tmp_path: Path, before: Path) -> None:
    tidied = {
        name: "\n\n\n".join(map(ast.unparse, reversed(ast.parse((before / f"{name}.py").read_text()).body)))
        for name in BEFORE
    }
    other = tmp_path / "other"
    other.mkdir()
    for name, source in tidied.items():
        (other / f"{name}.py").write_text(source)
    assert "Largest" not in (other / "main.py").read_text()
    assert program(other).text() == program(before).text()
    documented = BEFORE["main"].replace('"""One tile."""', '"""Another text."""')
    assert program(write(tmp_path / "documented", **{**BEFORE, "main": documented})).text() == program(before).text()


def test_a_function_may_move_to_another_module(tmp_path: Path, before: Path) -> None:
    moved = {
        "main": BEFORE["main"].replace("from .softmax", "from .online"),
        "online": BEFORE["softmax"].replace("LIMIT = 5", "from .limits import LIMIT"),
        "limits": "LIMIT = 5",
    }
    assert program(write(tmp_path / "moved", **moved)).text() == program(before).text()


def test_names_count_and_so_do_parameters_that_nobody_declared(tmp_path: Path, before: Path) -> None:
    for old, new in (("scores", "products"), ("k, maximum", "k, unused, maximum"), ("q_ptr, k_ptr", "k_ptr, q_ptr")):
        main = BEFORE["main"].replace(old, new)
        assert program(write(tmp_path / new, **{**BEFORE, "main": main})).text() != program(before).text()


# Parameters


def left_of(folder: Path, source: str, **absent: bool | int | float | str | None) -> dict[str, str]:
    return source_of(program(write(folder, main=source), **absent))


def test_a_parameter_goes_from_wherever_it_stands(tmp_path: Path) -> None:
    left = left_of(
        tmp_path,
        """
        @triton.jit
        def helper(F, a, /, b, P=None, c=3, *, G=False, d, H=None, e=5):
            return a + b + c + d + e

        @triton.jit
        def kernel(a, F, P, G, H):
            helper(F, a, a, P, a, d=1, G=G, H=H)
            helper(False, a, a, d=a)
            helper(F, a, b=a, c=a, P=P, G=G, d=2)
        """,
        F=False, P=None, G=False, H=None,
    )  # fmt: skip
    assert left["helper"].splitlines()[1] == "def helper(a, /, b, c=3, *, d, e=5):"
    assert left["kernel"].splitlines()[1:] == [
        "def kernel(a):",
        "    helper(a, a, a, d=1)",
        "    helper(a, a, d=a)",
        "    helper(a, b=a, c=a, d=2)",
    ]


@pytest.mark.parametrize(
    "call",
    [
        "helper(a, True)",
        "helper(a, 0)",
        "helper(a, a > 1)",
        "helper(a, F=a)",
        "helper(a)",
        "helper(*a)",
        "helper(a, **{'F': True})",
        "tl.reduce(a, helper)",
        "apply(helper, F)",
        "other(a)",
    ],
)
def test_a_helper_that_is_used_otherwise_keeps_its_parameter(call: str, tmp_path: Path) -> None:
    """Another value, one of another type, none that can be told, or no call at all: then its branch counts too."""
    source = f"""
        @triton.jit
        def helper(a, F: tl.constexpr = True):
            if F:
                return a
            return -a

        @triton.jit
        def other(a):
            return helper(a, True)

        @triton.jit
        def kernel(a, F: tl.constexpr):
            helper(a, F)
            return {call}
        """
    left = left_of(tmp_path, source, F=False)
    assert "def helper(a, F: tl.constexpr=True):\n    if F:\n        return a" in left["helper"]
    assert "helper(a, False)" in left["kernel"]


def test_a_call_that_an_absent_feature_rules_out_passes_nothing(tmp_path: Path) -> None:
    left = left_of(
        tmp_path,
        """
        @triton.jit
        def leaf(a, F: tl.constexpr):
            return a if F else -a

        @triton.jit
        def kernel(a, F: tl.constexpr, G: tl.constexpr):
            if G:
                return leaf(a, True)
            return leaf(a, F)
        """,
        F=False, G=False,
    )  # fmt: skip
    assert left["leaf"].endswith("def leaf(a):\n    return -a")


@pytest.mark.parametrize(
    "decorator",
    ["@other", "@triton.autotune([1], key=[])", "@triton.jit(do_not_specialize=[1])", "@triton.jit(names())"],
)
def test_decorators_that_may_count_parameters_keep_them(decorator: str, tmp_path: Path) -> None:
    source = f"\n{decorator}\ndef kernel(a, F):\n    return a if F else -a\n"
    assert "def kernel(a, F):\n    return a if F else -a" in left_of(tmp_path, source, F=False)["kernel"]


def test_a_numbered_list_in_a_constant_counts_parameters_too(tmp_path: Path) -> None:
    source = "_N = [1]\n@triton.jit(do_not_specialize=_N)\ndef kernel(a, F):\n    return a if F else -a\n"
    assert "def kernel(a, F)" in left_of(tmp_path, source, F=False)["kernel"]


def test_a_parameter_that_is_bound_anew_stays_unless_that_is_ruled_out(tmp_path: Path) -> None:
    source = """
        @triton.jit
        def kernel(a, P, W, F: tl.constexpr, S: tl.constexpr):
            if F:
                P = a
            W = W + a
            S = [1 for S in range(a)]
            return P is None, W, S
        """
    left = left_of(tmp_path, source, F=False, P=None, W=0, S=False)["kernel"]
    assert left.splitlines()[1:] == [
        "def kernel(a, W, S: tl.constexpr):",
        "    W = W + a",
        "    S = [1 for S in range(a)]",
        "    return (True, W, S)",
    ]


@pytest.mark.parametrize("statement", ["yield a", "global LIMIT"])
def test_functions_that_folding_could_change_are_left_alone(statement: str, tmp_path: Path) -> None:
    source = f"LIMIT = 1\ndef kernel(a, F):\n    if F:\n        {statement}\n    return LIMIT\n"
    assert statement in left_of(tmp_path, source, F=False)["kernel"]


# What names mean


def test_a_variable_is_no_global(tmp_path: Path) -> None:
    source = """
        @triton.jit
        def helper(a, F):
            return a

        UNUSED = 1

        @triton.jit
        def kernel(a, helper, F):
            UNUSED = a
            return helper(a, F) + UNUSED
        """
    left = left_of(tmp_path, source, F=False)
    assert left.keys() == {"kernel"}
    assert "helper(a, False)" in left["kernel"]


@pytest.mark.parametrize(
    "statement",
    [
        "if tl.x:\n    HIDDEN = 1",
        "HIDDEN = 1\nHIDDEN = 2",
        "HIDDEN = 1\nHIDDEN += 1",
        "HIDDEN, OTHER = 1, 2",
        "for HIDDEN in range(1):\n    pass",
        "try:\n    from .extra import HIDDEN\nexcept ImportError:\n    HIDDEN = 1",
        "from .extra import HIDDEN",
        "from .extra import value as HIDDEN",
        "from .extra import *",
        "from . import extra as HIDDEN",
        "from prefetch_compiler.templates.extra import HIDDEN",
        "import prefetch_compiler.templates.extra as HIDDEN",
        "from .between import HIDDEN",
        "class HIDDEN:\n    from .extra import value",
        "def HIDDEN(x=[value for value in (1, 2)]):\n    from .extra import value\n    return value",
    ],
)
def test_whatever_a_name_comes_from_counts(statement: str, tmp_path: Path) -> None:
    main = f"{statement}\n@triton.jit\ndef kernel(a):\n    return a + HIDDEN\n"
    others = {"extra": "value = 1\nHIDDEN = value + 1\n", "between": "from .extra import HIDDEN"}
    first = program(write(tmp_path / "first", main=main, **others)).text()
    edited = {"main": main.replace("1", "7"), "extra": others["extra"].replace("1", "7"), "between": others["between"]}
    changed = program(write(tmp_path / "changed", **edited)).text()
    assert first != changed
    assert program(write(tmp_path / "unused", main=main + "\nMORE = 1\n", **others)).text() == first


def test_statements_with_effects_count_with_their_module(tmp_path: Path) -> None:
    helper = "@triton.jit\ndef helper(a):\n    return a\n"
    main = "from .extra import helper\n@triton.jit\ndef kernel(a):\n    return {}\n"
    texts = {
        (use, effect): program(
            write(tmp_path / f"{use}-{bool(effect)}", main=main.format(use), extra=f"{helper}{effect}")
        ).text()
        for use in ("a", "helper(a)")
        for effect in ("", "helper.fast = True\n")
    }
    assert texts["a", ""] == texts["a", "helper.fast = True\n"]
    assert texts["helper(a)", ""] != texts["helper(a)", "helper.fast = True\n"]


def test_two_functions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    main = """
        from .one import helper
        from .two import helper as second

        @triton.jit
        def kernel(a):
            return {}
        """
    others = {"one": "def helper(a):\n    return a\n", "two": "def helper(a):\n    return -a\n"}
    texts = {
        program(write(tmp_path / str(number), main=main.format(result), **others)).text()
        for number, result in enumerate(["helper(a) - second(a)", "second(a) - helper(a)"])
    }
    assert len(texts) == 2
    swapped = {"one": others["two"], "two": others["one"]}
    text = program(write(tmp_path / "swapped", main=main.format("helper(a) - second(a)"), **swapped)).text()
    assert text not in texts


@pytest.mark.parametrize(
    ("source", "entry", "words"),
    [
        ("", "main.kernel", "'kernel'"),
        ("kernel = 1", "main.kernel", "'kernel'"),
        ("def kernel(): pass\ndef kernel(): pass", "main.kernel", "'kernel'"),
        ("", "gone.kernel", "gone.py"),
        ("def kernel(:", "main.kernel", "invalid syntax"),
        ("from .gone import x\ndef kernel(): return x", "main.kernel", "gone.py"),
        ("from .main import x\ndef kernel(): return y\ndef y(): return x", "main.kernel", "circle"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_where(source: str, entry: str, words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, main=source)
    with pytest.raises(TemplateSourceError, match=words):
        program(folder, (entry,))


def test_what_is_left_still_runs(after: Path) -> None:
    """Two tiles of q * k = 12 and 60 in plain Python: max(60, max(12, 0) + 5 + 16) + 5 + 16."""
    stored: list[int] = []

    class Language:
        constexpr = None
        maximum = staticmethod(max)
        store = staticmethod(lambda place, value: stored.append(value))

    left = program(after, **NEITHER).definitions()
    for node in left.values():
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
    scope = run(list(left.values()), tl=Language, gdc_wait=lambda: None)
    scope["kernel"](3, 4, q_len=1, kv_len=32, BLOCK=16, TMA=True)
    assert stored == [60 + 5 + 16]
