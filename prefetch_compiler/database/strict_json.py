"""Bytes from anywhere -> plain data, or one error. Bounded in time and memory, whatever the bytes are.

Python's own parser with everything refused that JSON readers disagree on: duplicate keys, NaN and Infinity, numbers
beyond what any of our files holds, more than one value, encodings other than UTF-8, halves of characters.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_BYTES = 64 << 20
MAX_DEPTH = 32
# Python objects take some 50 times the bytes of the shortest JSON values: bounds the memory that parsing takes.
MAX_VALUES = 4_000_000
# Digits of an integer (2**63 has 19) and characters of a fraction (Python writes at most 24).
MAX_INTEGER_CHARACTERS = 20
MAX_FRACTION_CHARACTERS = 32

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DIGITS = bytes.maketrans(b"123456789.+-E", b"000000000000e")
_LONG_NUMBER = b"0" * (MAX_INTEGER_CHARACTERS + 1)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_BRACES_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")


class StrictJsonError(ValueError):
    """The bytes are refused. Its text is the problem alone: the caller knows the file and the fix."""


def parse(data: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """The one JSON value that ``data`` holds: dict, list, str, int, finite float, bool or None.

    Raises:
        StrictJsonError: it is refused.
    """
    if len(data) > max_bytes:
        raise StrictJsonError(f"{len(data)} bytes are over the limit of {max_bytes}")
    try:
        return _parse(data)
    except RecursionError as error:
        # No depth of ours does this, but the caller may be near the end of the stack.
        raise StrictJsonError("the stack that is left is too short to parse it") from error


def _parse(data: bytes) -> Any:
    outside = _outside_strings(data)
    _check_shape(outside)
    # Python code called for every number takes longer than everything else.
    checked: dict[str, Any] = {"parse_int": _integer, "parse_float": _fraction} if _has_suspect_numbers(outside) else {}
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"byte {error.start} is not UTF-8") from error
    if text.startswith("\ufeff"):
        raise StrictJsonError("it starts with a byte order mark")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, **checked)
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"not JSON: {error}") from error
    if _SURROGATE.search(data):
        _require_whole_characters(value)
    return value


def _require_whole_characters(value: Any) -> None:
    """Half of a surrogate pair, which only an escape can spell, is no text: it has no UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise StrictJsonError("a string has half of a surrogate pair") from error


def _outside_strings(data: bytes) -> bytes:
    """What stands between the strings, of which the quotes stay: first escaped characters are cut out, then everything
    between quotes."""
    pieces = data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    return b'""'.join(pieces[::2])


def _has_suspect_numbers(outside: bytes) -> bool:
    """Whether a number may be longer than allowed, or, having an exponent, too large for a double."""
    digits = outside.translate(_DIGITS)
    return _LONG_NUMBER in digits or b"0e" in digits


def _check_shape(outside: bytes) -> None:
    """Refuse deep nesting and too many values before anything is built, at the speed of bytes.replace.

    Of the brackets, every pass takes the innermost pairs, so that as many passes as there may be levels must take them
    all.
    """
    brackets = outside.translate(_BRACES_AS_BRACKETS, _NOT_BRACKETS)
    if outside.count(b",") + brackets.count(b"[") > MAX_VALUES:
        raise StrictJsonError(f"more than {MAX_VALUES} values")
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise StrictJsonError(f"nested over {MAX_DEPTH} levels, or brackets that do not match")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = set(found)
        for name, _ in pairs:
            if name not in names:
                raise StrictJsonError(f"the key {_shown(name)} stands twice in one object")
            names.remove(name)
    return found


def _constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_CHARACTERS:
        raise StrictJsonError(f"an integer of {len(text)} characters: {_shown(text)}")
    return int(text)


def _fraction(text: str) -> float:
    if len(text) > MAX_FRACTION_CHARACTERS:
        raise StrictJsonError(f"a number of {len(text)} characters: {_shown(text)}")
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError(f"the number {text} is out of range")
    return value


def _shown(text: str) -> str:
    """A piece of hostile text, short and without control characters."""
    return ascii(text if len(text) <= 40 else f"{text[:40]}...")
