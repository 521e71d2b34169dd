"""The databases that ship: whole, measured, admissible, and by their own evidence never slower than the default."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefetch_compiler.database.overlay import shipped_folder
from prefetch_compiler.database.record import TuningRecord
from prefetch_compiler.database.store import database_files, file_name, read
from prefetch_compiler.database.template_hash import present_hash
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.tuning.acceptance import MIN_GAIN

FOLDER = shipped_folder()
assert FOLDER is not None
FILES = list(database_files(FOLDER))
RECORDS = [
    pytest.param(record, database.device.arch, id=record.key.name)
    for database in map(read, FILES)
    for record in database.records
]


def test_something_ships() -> None:
    assert FILES
    assert RECORDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_named_after_its_device(path: Path) -> None:
    assert path.name == file_name(read(path).device)


@pytest.mark.parametrize(("record", "arch"), RECORDS)
def test_records_are_measured_and_admissible(record: TuningRecord, arch: int) -> None:
    assert record.measured
    assert why_inadmissible(record.key.spec(), record.config, REFERENCE_DEVICES[arch]) is None


@pytest.mark.parametrize(("record", "arch"), RECORDS)
def test_no_record_loses_to_the_default(record: TuningRecord, arch: int) -> None:
    measured = record.evidence.measurement
    assert measured is not None
    assert 0 <= measured.error <= 1
    if record.config == measured.default.config:
        assert measured.timing == measured.default.timing
    else:
        assert measured.timing.median_us < measured.default.timing.median_us * (1 - MIN_GAIN) + 0.001


@pytest.mark.parametrize(("record", "arch"), RECORDS)
def test_no_record_is_of_other_kernels(record: TuningRecord, arch: int) -> None:
    toolchain = record.evidence.toolchain
    assert toolchain.template_hash == present_hash(toolchain.template, record.key)
