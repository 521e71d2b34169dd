"""The file format: one way to write it, every byte covered, every rule kept on reading and on writing."""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database import document
from prefetch_compiler.database.document import Database, decode, encode
from prefetch_compiler.database.errors import (
    ChecksumError,
    CorruptDatabaseError,
    DatabaseTooLargeError,
    InvalidRecordError,
    UnsupportedVersionError,
)
from prefetch_compiler.database.key import Feature, MaskClass
from prefetch_compiler.database.record import DeviceIdentity, Evidence, FillTiming, Measurement, Rival, TuningRecord

from ..fuzz.repaired import with_digest
from .examples import CONFIG, H200, KEY, TOOLCHAIN, database, databases, measured, modelled, timing

EXAMPLE = database(measured(), modelled(KEY.at(batch=1, capacity=512)), family_fallback=True)


def rewritten(change: Callable[[dict[str, Any]], None], data: bytes = encode(EXAMPLE)) -> bytes:
    """The document after ``change``, with checksums and digest put right again, as an attacker would."""
    plain = json.loads(data)
    change(plain)
    return with_digest(plain)


@given(databases())
def test_what_is_written_is_read_back_and_written_alike(stored: Database) -> None:
    data = encode(stored)
    assert decode(data) == stored
    assert encode(decode(data)) == data


def test_times_that_are_whole_numbers_are_written_as_fractions() -> None:
    whole = database(measured(median_us=20, default_us=25))
    assert decode(encode(whole)) == whole
    assert encode(whole) == encode(database(measured(median_us=20.0, default_us=25.0)))


def test_equal_records_in_any_order_are_equal_bytes() -> None:
    records = EXAMPLE.records
    assert encode(Database(H200, records[::-1], True)) == encode(Database(H200, records, True))


def test_a_file_is_read_by_people() -> None:
    text = encode(EXAMPLE).decode("ascii")
    assert text.endswith("}\n")
    assert "\t" not in text
    lines = text.splitlines()
    for name in ("key", "config", "toolchain", "timing", "default", "best_depth0", "fills"):
        assert any(re.fullmatch(rf' +"{name}": [{{\[].*[}}\]],?', line) for line in lines), name
    assert len(lines) < 50


def test_a_changed_time_is_a_changed_line() -> None:
    before = encode(database(measured())).decode().splitlines()
    after = encode(database(measured(median_us=21.0))).decode().splitlines()
    changed = [line.split('"')[1] for line, other in zip(after, before, strict=True) if line != other]
    assert changed == ["timing", "fills", "checksum", "digest"]


def test_neighbouring_buckets_are_neighbours_in_the_file() -> None:
    sizes = [(1, 1024), (1, 4096), (1, 65536), (2, 1024), (16, 1024), (128, 1024)]
    stored = database(*(measured(KEY.at(batch=batch, capacity=capacity)) for batch, capacity in sizes[::-1]))
    assert [(r.key.batch_bucket, r.key.capacity_bucket) for r in decode(encode(stored)).records] == sizes


# Damage: cuts and flipped bits are in test_corruption.py


@pytest.fixture(scope="module")
def small() -> bytes:
    return encode(database(measured()))


@pytest.mark.parametrize("added", [b" ", b"\n", b"\x00", b"{}", b","])
def test_a_file_with_something_after_its_end_is_refused(small: bytes, added: bytes) -> None:
    with pytest.raises(CorruptDatabaseError):
        decode(small + added)


@pytest.mark.parametrize("collecting", [True, False])
def test_reading_leaves_garbage_collection_as_it_was(small: bytes, collecting: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        decode(small)
        assert gc.isenabled() is collecting
        with pytest.raises(CorruptDatabaseError):
            decode(small[:-1])
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_line_ends_of_another_system_are_noticed(small: bytes) -> None:
    with pytest.raises(CorruptDatabaseError):
        decode(small.replace(b"\n", b"\r\n"))


def test_a_record_that_was_edited_is_named() -> None:
    def slower(plain: dict[str, Any]) -> None:
        plain["records"][0]["evidence"]["trials"] += 1

    edited = json.loads(rewritten(slower))
    old = json.loads(encode(EXAMPLE))["records"][0]["checksum"]
    data = rewritten(slower).replace(edited["records"][0]["checksum"].encode(), old.encode())
    head = data[: -64 - 4]
    data = head + hashlib.sha256(head).hexdigest().encode() + data[-4:]
    with pytest.raises(ChecksumError, match=EXAMPLE.records[0].key.name):
        decode(data)


# Versions and sizes


@pytest.mark.parametrize("version", [0, 1, 3, 17, -1])
def test_another_version_is_told_from_a_corrupt_file(version: int) -> None:
    for data in (
        json.dumps({"schema_version": version, "anything": [1, 2]}).encode(),
        rewritten(lambda plain: plain.update(schema_version=version)),
    ):
        with pytest.raises(UnsupportedVersionError, match=f"^some.json: .*{version} is not supported, only 2"):
            decode(data, "some.json")


@pytest.mark.parametrize("version", [True, "1", 1.0, None, [1]])
def test_a_version_that_is_no_integer_is_corrupt(version: object) -> None:
    with pytest.raises(CorruptDatabaseError, match="schema_version"):
        decode(rewritten(lambda plain: plain.update(schema_version=version)))


def test_what_cannot_be_read_for_its_size_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(EXAMPLE)
    monkeypatch.setattr(document, "MAX_BYTES", len(data) - 1)
    with pytest.raises(DatabaseTooLargeError, match=str(len(data))):
        decode(data)
    with pytest.raises(DatabaseTooLargeError, match=str(len(data))):
        encode(EXAMPLE)


# Structure and rules: each is refused when read, even with good checksums, and when written


def _record(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda plain: change(plain["records"][1])


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(plain: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            plain = plain[int(name) if isinstance(plain, list) else name]
        plain[last] = value

    return change


RECORD = "records.1."  # the measured one
WRONG: dict[str, tuple[str, Any]] = {
    "an unknown field": ("extra", 1),
    "an unknown field of a device": ("device.vendor", "NVIDIA"),
    "an unknown field of a record": (RECORD + "note", ""),
    "an unknown field of a timing": (RECORD + "evidence.measurement.timing.p99_us", 30.0),
    "records that are no list": ("records", {}),
    "a record that is no object": ("records", [1]),
    "a flag that is a number": ("family_fallback", 1),
    "an empty device name": ("device.name", ""),
    "a device name with a line break": ("device.name", "NVIDIA H200\n"),
    "a device name with an escape": ("device.name", "\x1b[31mH200"),
    "a device name that is long": ("device.name", "H" * 129),
    "an unknown backend": ("device.backend", "tpu"),
    "no SMs": ("device.sm_count", 0),
    "a bucket that is no power of two": (RECORD + "key.capacity_bucket", 4095),
    "a bucket of nothing": (RECORD + "key.batch_bucket", 0),
    "a bucket that is a fraction": (RECORD + "key.batch_bucket", 16.0),
    "a bucket that is text": (RECORD + "key.batch_bucket", "16"),
    "a bucket that is true": (RECORD + "key.batch_bucket", True),
    "a huge bucket": (RECORD + "key.capacity_bucket", 1 << 31),
    "an unknown dtype": (RECORD + "key.dtype", "float8_e4m3fn"),
    "an unknown layout": (RECORD + "key.layout", "paged"),
    "a mask dtype without an additive mask": (RECORD + "key.mask_dtype", "float32"),
    "an additive mask without a dtype": (RECORD + "key.mask", "additive"),
    "a feature twice": (RECORD + "key.features", ["growing", "growing"]),
    "an unknown feature": (RECORD + "key.features", ["sinks"]),
    "a config out of range": (RECORD + "config.block_kv", 48),
    "too many splits": (RECORD + "config.num_splits", 513),
    "a depth out of range": (RECORD + "config.prefetch_depth", 9),
    "a default out of range": (RECORD + "evidence.measurement.default.config.num_warps", 3),
    "a time of zero": (RECORD + "evidence.measurement.timing.p20_us", 0),
    "a negative time": (RECORD + "evidence.measurement.timing.p20_us", -1.0),
    "percentiles out of order": (RECORD + "evidence.measurement.timing.p20_us", 20.5),
    "a rival's percentiles out of order": (RECORD + "evidence.measurement.default.timing.p80_us", 1.0),
    "an error over its bound": (RECORD + "evidence.measurement.error", 1.01),
    "a negative error": (RECORD + "evidence.measurement.error", -0.1),
    "an error of minus zero": (RECORD + "evidence.measurement.error", -0.0),
    "no fill levels": (RECORD + "evidence.measurement.fills", []),
    "a fill over the capacity": (RECORD + "evidence.measurement.fills.1.held", 4097),
    "fills out of order": (RECORD + "evidence.measurement.fills.1.held", 511),
    "no bytes": (RECORD + "evidence.measurement.fills.0.kv_bytes", 0),
    "a prefetching depth 0": (RECORD + "evidence.measurement.best_depth0.config.prefetch_depth", 1),
    "neither measured nor modelled": (RECORD + "evidence.measurement", None),
    "a day that is none": (RECORD + "evidence.date", "2026-02-30"),
    "a time that is none": (RECORD + "evidence.date", "2026-02-03T25:00:00Z"),
    "a date of another zone": (RECORD + "evidence.date", "2026-02-03T05:00:00+02:00"),
    "a date in words": (RECORD + "evidence.date", "yesterday"),
    "a template that is a path": (RECORD + "evidence.toolchain.template", "../../etc/passwd"),
    "a template that is a module": (RECORD + "evidence.toolchain.template", "os.system"),
    "a hash that is no hex": (RECORD + "evidence.toolchain.template_hash", "z" * 64),
    "a Triton without a minor version": (RECORD + "evidence.toolchain.triton", "3"),
    "a negative count of trials": (RECORD + "evidence.trials", -1),
    "a negative seed": (RECORD + "evidence.seed", -1),
    "a huge seed": (RECORD + "evidence.seed", 1 << 63),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_job_records_is_refused_with_good_checksums(name: str) -> None:
    data = rewritten(_set(*WRONG[name]))
    with pytest.raises(CorruptDatabaseError, match=r"^some\.json: not a valid tuning database: .*tune again"):
        decode(data, "some.json")


def test_rewriting_alone_is_not_what_is_refused() -> None:
    assert decode(rewritten(lambda plain: None)) == EXAMPLE


@pytest.mark.parametrize("path", ["device", "family_fallback", "records", RECORD + "config.merge", RECORD + "key.mask"])
def test_every_field_is_required(path: str) -> None:
    def remove(plain: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            plain = plain[int(name) if isinstance(plain, list) else name]
        del plain[last]

    with pytest.raises(CorruptDatabaseError, match=path.split(".")[-1]):
        decode(rewritten(remove))


def test_two_records_of_one_identity_are_refused() -> None:
    def twice(plain: dict[str, Any]) -> None:
        plain["records"].append({**plain["records"][0], "config": plain["records"][0]["config"]})

    with pytest.raises(CorruptDatabaseError, match=r"2 records of .* have one identity"):
        decode(rewritten(twice))
    with pytest.raises(InvalidRecordError, match="one identity"):
        encode(database(measured(), measured(median_us=21.0)))


def _with_measurement(**changes: Any) -> TuningRecord:
    record = measured()
    assert record.evidence.measurement is not None
    return replace(
        record, evidence=replace(record.evidence, measurement=replace(record.evidence.measurement, **changes))
    )


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (measured(replace(KEY, capacity_bucket=4095)), "no power of two"),
        (measured(replace(KEY, mask=MaskClass.ADDITIVE)), "mask_dtype"),
        (measured(replace(KEY, features=(Feature.GROWING, Feature.GROWING))), "features"),
        (measured(replace(KEY, features=(Feature.VALUE_TOKEN_SCALES,))), "has no scales"),
        (measured(replace(KEY, kv_dtype="float8_e5m2fnuz")), "float8_e5m2fnuz"),
        (measured(median_us=float("nan")), "median_us"),
        (measured(median_us=float("inf")), "1000000000000.0"),
        (measured(date="2026-02-30"), "calendar"),
        (measured(trials=-1), "trials"),
        (_with_measurement(error=1.5), "error"),
        (_with_measurement(fills=()), "fills"),
        (_with_measurement(best_depth0=Rival(replace(CONFIG, prefetch_depth=2), timing(1.0))), "prefetches"),
        (_with_measurement(best_depth0=Rival(replace(CONFIG, prologue_prefetch=True), timing(1.0))), "prefetches"),
        (TuningRecord(KEY, CONFIG, Evidence(TOOLCHAIN, 1, 0, "2026-02-03")), "neither"),
        (TuningRecord(KEY, CONFIG, Evidence(TOOLCHAIN, 1, 0, None)), "date"),  # type: ignore[arg-type]
        (TuningRecord(KEY, object(), Evidence(TOOLCHAIN, 1, 0, "2026-02-03")), "object"),  # type: ignore[arg-type]
    ],
)
def test_what_would_not_be_read_is_not_written(record: TuningRecord, problem: str) -> None:
    with pytest.raises(InvalidRecordError, match="cannot be written") as error:
        encode(database(record))
    assert problem in str(error.value)


def test_a_device_that_would_not_be_read_is_not_written() -> None:
    with pytest.raises(InvalidRecordError, match="device"):
        encode(Database(DeviceIdentity("", "cuda", 90, 132), ()))


def test_configs_are_checked_by_their_own_class(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(EXAMPLE)
    monkeypatch.setattr(KernelConfig, "_require", _refuse_all)
    with pytest.raises(CorruptDatabaseError, match="refused by itself"):
        decode(data)


def _refuse_all(config: KernelConfig, name: str, holds: bool, rule: str) -> None:
    raise ValueError("refused by itself")


def test_every_field_of_a_record_is_written() -> None:
    """A field that is added to the records, and not to the format, would be lost."""
    record = encode(database(measured())).decode()
    for kind in (type(KEY), KernelConfig, type(TOOLCHAIN), Evidence, Measurement, FillTiming, Rival, TuningRecord):
        for name in kind.__dataclass_fields__:
            assert f'"{name}": ' in record, f"{kind.__name__}.{name}"


HOSTILE_TEXT = "a\nWARNING:root:forged \x1b[31m\u202e\u2028" + "b" * 100_000


def _as_an_unknown_field(plain: dict[str, Any]) -> None:
    plain[HOSTILE_TEXT] = 1


def _as_an_enum(plain: dict[str, Any]) -> None:
    plain["records"][0]["key"]["layout"] = HOSTILE_TEXT


def _as_a_name(plain: dict[str, Any]) -> None:
    plain["device"]["name"] = HOSTILE_TEXT


@pytest.mark.parametrize("change", [_as_an_unknown_field, _as_an_enum, _as_a_name], ids=lambda way: way.__name__)
def test_what_an_error_quotes_forges_no_line_and_fills_no_log(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(CorruptDatabaseError) as caught:
        decode(rewritten(change), "h200.json")
    message = str(caught.value)
    assert message.isascii() and message.isprintable()
    assert len(message) < 1000
