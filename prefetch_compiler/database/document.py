"""Database <-> bytes. Reading trusts nothing; writing refuses what reading would refuse."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from .canonical import Plain, checksum, digests, plain_record, write
from .errors import (
    ChecksumError,
    CorruptDatabaseError,
    DatabaseTooLargeError,
    InvalidRecordError,
    UnsupportedVersionError,
)
from .key import TuningKey, sort_key
from .record import DeviceIdentity, TuningRecord
from .rules import problem
from .strict_json import MAX_BYTES, StrictJsonError, parse
from .wire import SCHEMA_VERSION, WireDatabase, WireRecord, structure


@dataclass(frozen=True)
class Database:
    """The records of one GPU model, always in the order of the file.

    ``family_fallback`` declares that GPUs of the same family may use them where they have no record of their own.
    """

    device: DeviceIdentity
    records: tuple[TuningRecord, ...] = ()
    family_fallback: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", tuple(sorted(self.records, key=_order)))


def _order(record: TuningRecord) -> tuple[object, ...]:
    toolchain = record.evidence.toolchain
    identity = (toolchain.template, toolchain.template_hash, toolchain.triton_minor)
    return *sort_key(record.key), *identity


def decode(data: bytes, source: object = "database") -> Database:
    """The database that ``data`` is. ``source`` is what errors name: its path.

    Raises:
        DatabaseTooLargeError, CorruptDatabaseError, ChecksumError, UnsupportedVersionError: there is none to be had.
    """
    if len(data) > MAX_BYTES:
        raise DatabaseTooLargeError(source, len(data), MAX_BYTES)
    with _no_collection():
        return _decode(data, source)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Reading makes many objects and no garbage cycles: looking for those took 40% of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _decode(data: bytes, source: object) -> Database:
    try:
        plain = parse(data)
    except StrictJsonError as error:
        raise CorruptDatabaseError(source, str(error)) from error
    _check_version(plain, source)
    _check_digest(data, source)
    try:
        wire = structure(plain, WireDatabase)
        device = msgspec.convert(wire.device, DeviceIdentity, from_attributes=True)
        records = tuple(msgspec.convert(record, TuningRecord, from_attributes=True) for record in wire.records)
    except msgspec.ValidationError as error:
        raise CorruptDatabaseError(source, str(error)) from error
    for record, read in zip(records, wire.records, strict=True):
        _check_record(record, read, source)
    _check_rivals(records, source)
    return Database(device, records, wire.family_fallback)


def encode(database: Database) -> bytes:
    """The canonical bytes: ``encode(decode(encode(x))) == encode(x)``.

    Raises:
        InvalidRecordError: a record, or the device, is such that reading would refuse it.
        DatabaseTooLargeError: the file would be too large to be read.
    """
    records = []
    for record in database.records:
        try:
            records.append(_valid_plain(record))
        except (TypeError, ValueError) as error:
            raise InvalidRecordError(f"record {_shown(record.key)}: {error}") from error
    if len({record.identity for record in database.records}) != len(records):
        raise InvalidRecordError("two records have one identity (key, template and Triton version); merge them")
    head = {
        "schema_version": SCHEMA_VERSION,
        "device": msgspec.to_builtins(database.device),
        "family_fallback": database.family_fallback,
    }
    try:
        structure({**head, "records": [], "digest": "0" * 64}, WireDatabase)
    except msgspec.ValidationError as error:
        raise InvalidRecordError(str(error)) from error
    data = write(head, records)
    if len(data) > MAX_BYTES:
        raise DatabaseTooLargeError(_shown(database.device), len(data), MAX_BYTES)
    return data


def _check_version(plain: object, source: object) -> None:
    """Before all else: a file of another version is not corrupt, whatever is in it."""
    if not isinstance(plain, dict) or "schema_version" not in plain:
        raise CorruptDatabaseError(source, "it is no JSON object with a schema_version")
    version = plain["schema_version"]
    if isinstance(version, bool) or not isinstance(version, int):
        raise CorruptDatabaseError(source, "its schema_version is no integer")
    if version != SCHEMA_VERSION:
        raise UnsupportedVersionError(source, version, SCHEMA_VERSION)


def _check_digest(data: bytes, source: object) -> None:
    found = digests(data)
    if found is None:
        raise CorruptDatabaseError(source, "it does not end with its digest: it was cut off or edited")
    written, computed = found
    if written != computed:
        raise ChecksumError(source, "the file", computed, ascii(written).strip("'"))


def _check_record(record: TuningRecord, read: WireRecord, source: object) -> None:
    computed = checksum(plain_record(record))
    if computed != read.checksum:
        raise ChecksumError(source, f"record {record.key.name}", computed, read.checksum)
    broken = problem(record)
    if broken is not None:
        raise CorruptDatabaseError(source, f"record {record.key.name}: {broken}")


def _check_rivals(records: tuple[TuningRecord, ...], source: object) -> None:
    identity, count = max(Counter(r.identity for r in records).items(), key=lambda item: item[1], default=(None, 0))
    if identity is not None and count > 1:
        raise CorruptDatabaseError(source, f"{count} records of {identity[0].name} have one identity")


def _valid_plain(record: TuningRecord) -> Plain:
    """Raises: ValueError (msgspec's own is one): reading would refuse it; TypeError: not plain data at all."""
    # The way through the format's types also makes fractions of whole times, as reading does.
    wire = structure({**plain_record(record), "checksum": "0" * 64}, WireRecord)
    plain: Plain = msgspec.to_builtins(wire)
    plain.pop("checksum")
    broken = problem(record)
    if broken is not None:
        raise ValueError(broken)
    return {**plain, "checksum": checksum(plain)}


def _shown(value: object) -> str:
    return value.name if isinstance(value, TuningKey | DeviceIdentity) else repr(value)[:200]
