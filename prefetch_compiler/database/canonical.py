"""The one way in which a database is written, so that equal databases are equal bytes and a changed record is a changed
line. Floats are Python's shortest text that reads back the same, which no version of Python has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from .record import TuningRecord

Plain = dict[str, Any]

# These objects take a line for each of their fields; every other stands on one line.
_SPREAD = ("evidence", "measurement")
_DIGEST_FIELD = b'  "digest": "'
_END = b'"\n}\n'
_HEX_DIGITS = 64


def plain_record(record: TuningRecord) -> Plain:
    """The record as plain data, without its checksum."""
    plain: Plain = msgspec.to_builtins(record)
    return plain


def record_bytes(record: TuningRecord) -> bytes:
    """Compact JSON with sorted keys: what the checksum covers."""
    return _compact(plain_record(record))


def checksum(plain: Plain) -> str:
    """Of a record as plain data, without its checksum."""
    return hashlib.sha256(_compact(plain)).hexdigest()


def _compact(plain: Plain) -> bytes:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def write(head: Mapping[str, Any], records: list[Plain]) -> bytes:
    """The file: ``head``'s fields, the records, and the digest of every byte before its own value."""
    lines = [f"  {_inline(name)}: {_inline(value)},\n" for name, value in head.items()]
    listed = ",\n".join("    " + _spread(record, "    ") for record in records)
    body = f"[\n{listed}\n  ]" if records else "[]"
    covered = ("{\n" + "".join(lines) + f'  "records": {body},\n').encode("ascii") + _DIGEST_FIELD
    return covered + hashlib.sha256(covered).hexdigest().encode("ascii") + _END


def digests(data: bytes) -> tuple[str, str] | None:
    """The digest that ``data`` ends with, and that of the bytes before it; None if it does not end with one.

    Every byte of a file is covered: those before the digest by it, the digest by comparison, the four bytes after it by
    comparison too.
    """
    start = len(data) - _HEX_DIGITS - len(_END)
    if start < len(_DIGEST_FIELD) or not data.endswith(_END) or not data.endswith(_DIGEST_FIELD, 0, start):
        return None
    found = data[start : start + _HEX_DIGITS].decode("latin-1")
    return found, hashlib.sha256(data[:start]).hexdigest()


def _spread(fields: Plain, indent: str) -> str:
    inner = indent + "  "
    lines = (
        f"{inner}{_inline(name)}: "
        + (_spread(value, inner) if name in _SPREAD and value is not None else _inline(value))
        for name, value in fields.items()
    )
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _inline(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)
