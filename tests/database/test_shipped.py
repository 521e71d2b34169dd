"""The databases that ship: whole, measured, admissible, and by their own evidence never slower than the default.

Some of their configurations are run in Triton's interpreter, amid guard bands, and some are compiled for their GPU
(test_db_command.py); KVPREFETCH_EVERY_RECORD=1 is for all of them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefetch_compiler.config import LoadPath
from prefetch_compiler.database.overlay import shipped_folder
from prefetch_compiler.database.record import TuningRecord
from prefetch_compiler.database.store import database_files, file_name, read
from prefetch_compiler.database.template_hash import present_hash
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.tuning.acceptance import MIN_GAIN
from prefetch_compiler.tuning.verification import verify

from ..zoo.quicker_interpreter import quicker_interpreter

# In the suite a few that differ in what writes what: splits, merges, how keys are divided, how they are loaded.
INTERPRETED = slice(None) if os.environ.get("KVPREFETCH_EVERY_RECORD") else slice(None, None, 75)
FOLDER = shipped_folder()
assert FOLDER is not None
FILES = list(database_files(FOLDER))
RECORDS = [
    pytest.param(record, database.device.arch, id=record.key.name)
    for database in map(read, FILES)
    for record in database.records
]


def _is_interpreted(record: TuningRecord, arch: int) -> bool:
    """Kernels with a producer warp are in Gluon, which the interpreter does not run: `kvprefetch db verify` does."""
    return record.config.load_path is not LoadPath.PRODUCER


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
    assert toolchain.template_hash == present_hash(toolchain.template, record.key, record.config)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU `kvprefetch db verify` runs all of them"
)
@pytest.mark.parametrize(("record", "arch"), [one for one in RECORDS if _is_interpreted(*one.values)][INTERPRETED])
def test_no_record_writes_outside_or_reads_what_nobody_wrote(record: TuningRecord, arch: int) -> None:
    """Its configuration, on a small cache of one KV head: outputs and scratch amid guard bands, K and V amid NaN."""
    key = replace(record.key, kv_heads=1, group=min(record.key.group, 2))
    small = key.at(batch=1, capacity=min(record.key.capacity_bucket, 64))
    with quicker_interpreter():
        assert 0 < verify(small, record.config, record.evidence.seed, torch.device("cpu")) <= 1
