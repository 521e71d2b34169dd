"""strict_json: what it takes is what JSON is, and what it refuses it refuses quickly."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_compiler.database import strict_json
from prefetch_compiler.database.strict_json import MAX_DEPTH, StrictJsonError, parse

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(plain, st.booleans(), st.sampled_from((None, 2)))
def test_what_json_writes_is_read_back(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    # A lone surrogate, which hypothesis draws, has no UTF-8.
    assert parse(text.encode("utf-8")) == value


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "brackets that do not match"),
        (b"}{", "brackets that do not match"),
        (b"[}", "not JSON"),
        (b"{} {}", "not JSON: Extra data"),
        (b"[1,]", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"[1] // one", "not JSON"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e999]", "out of range"),
        (b"[-1e999]", "out of range"),
        (b"01", "not JSON"),
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice"),
        (b'{"a": 1, "\\u0061": 1}', "the key 'a' stands twice"),
        (b'{"x": {"a": 1, "a": 1}}', "the key 'a' stands twice"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b'"\xed\xa0\x80"', "byte 1 is not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'{"\\uDFFF": 1}', "half of a surrogate pair"),
        (b'"\\ude00\\ud83d"', "half of a surrogate pair"),
        (b'"a\nb"', "not JSON"),
        (b'"\x00"', "not JSON"),
        (b"1" * 21, "an integer of 21 characters"),
        (b"1." + b"1" * 40, "a number of 42 characters"),
    ],
)
def test_what_readers_disagree_on_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(StrictJsonError) as error:
        parse(data)
    assert problem in str(error.value)


def test_whole_surrogate_pairs_and_what_only_looks_like_half_of_one_are_text() -> None:
    assert parse(b'["\\ud83d\\ude00", "\\\\ud800"]') == ["\U0001f600", "\\ud800"]


def test_depth_is_bounded() -> None:
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None
    with pytest.raises(StrictJsonError, match="nested over"):
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


@given(st.text('[]{}",\\a', max_size=40))
def test_brackets_within_strings_nest_nothing(text: str) -> None:
    deep = text + "[" * 100 + '"' + "{" * 100 + "\\" * 3
    assert parse(json.dumps({deep: [deep, "\\", deep]}).encode()) == {deep: [deep, "\\", deep]}


def test_a_stack_that_is_nearly_used_up_is_an_error_like_any_other() -> None:
    data = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH

    def parse_deep_down(calls: int) -> str:
        if calls:
            return parse_deep_down(calls - 1)
        try:
            parse(data)
        except StrictJsonError as error:
            return str(error)
        return "read"

    left = sys.getrecursionlimit() - stack_depth()
    found = {parse_deep_down(left - spare) for spare in range(15, 300, 5)}
    assert "read" in found
    assert found <= {"read", "the stack that is left is too short to parse it"}


def stack_depth() -> int:
    frame, depth = sys._getframe().f_back, 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


HOSTILE = {
    "one long string": b'"' + b"a" * 4_000_000 + b'"',
    "one string of escapes": b'"' + b"\\\\" * 2_000_000 + b'"',
    "a string that never ends": b'"' + b'\\"' * 2_000_000,
    "open brackets": b"[" * 4_000_000,
    "pairs of brackets": b"[" + b"[]," * 1_300_000 + b"[]]",
    "brackets that close first": b"][" * 2_000_000,
    "digits": b"9" * 4_000_000,
    "digits after a point": b"0." + b"9" * 4_000_000,
    "an exponent of digits": b"1e" + b"9" * 4_000_000,
    "spaces": b" " * 4_000_000,
    "equal keys": b"{" + b'"a":1,' * 600_000 + b'"a":1}',
    "quotes": b'"' * 4_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_megabytes_take_bounded_time(name: str) -> None:
    start = time.process_time()
    try:
        parse(HOSTILE[name])
    except StrictJsonError as error:
        assert len(str(error)) < 200
    # Some 0.1 s; what is quadratic in 4 MB takes hours.
    assert time.process_time() - start < 10


def test_size_and_count_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StrictJsonError, match="11 bytes are over the limit of 10"):
        parse(b"[1,2,3,4,5]", max_bytes=10)
    monkeypatch.setattr(strict_json, "MAX_VALUES", 4)
    assert parse(b'[1,2,"a,b,c,d,e",4]')
    with pytest.raises(StrictJsonError, match="more than 4 values"):
        parse(b"[1,2,3,4,5]")
