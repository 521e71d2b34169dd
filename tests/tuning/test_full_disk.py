"""A disk that fills up during a job: one error of ours, whatever could not be written, and the next run goes on where
this one stopped. What the disk refuses is simulated by a limit on the size of files."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.errors import DatabaseWriteError
from prefetch_compiler.database.key import TuningKey
from prefetch_compiler.database.store import read
from prefetch_compiler.tuning.errors import StudyStorageError
from prefetch_compiler.tuning.job import JobResult, database_path
from prefetch_compiler.tuning.protocol import Outcome
from prefetch_compiler.tuning.remembered import remember_all
from prefetch_compiler.tuning.storage import open_storage

from .fakes import H200, KEY, FakeMeasurer
from .test_job import OTHER, QUICK, tune_in

# Of those of QUICK: the disk is full in the middle of a study.
MEASURED = 9


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow any more. (Python ignores the signal that comes with it; what is called returns an error.)"""
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FillsTheDisk:
    """Called so many times, it fills the disk."""

    def __init__(self, after: int) -> None:
        self._left, self._disk = after, full_disk()

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._disk.__enter__()

    def make_room(self) -> None:
        self._disk.__exit__(None, None, None)


@pytest.mark.parametrize("kind", ["studies.db", "journal:studies.log"])
def test_a_storage_on_a_full_disk_costs_one_trial(kind: str, tmp_path: Path) -> None:
    prefix, _, name = kind.rpartition(":")
    where = f"{prefix}:{tmp_path / name}" if prefix else str(tmp_path / name)

    def tune(measurer: FakeMeasurer) -> JobResult:
        return tune_in(where, tmp_path, measurer)

    disk = FillsTheDisk(MEASURED)
    first = FakeMeasurer(pause=disk)
    try:
        with pytest.raises(StudyStorageError, match=r"storage of studies failed: .*; make room, or"):
            tune(first)
    finally:
        disk.make_room()
    assert len(first.trials) == MEASURED
    again = FakeMeasurer()
    result = tune(again)
    assert QUICK.trials <= len(first.trials) + len(again.trials) <= QUICK.trials + 1
    storage = open_storage(where)
    (study,) = (optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage))
    assert sum(trial.counts for trial in remember_all(study.trials)) == QUICK.trials
    assert read(result.path).records[0].evidence.trials == QUICK.trials


def test_a_database_on_a_full_disk_costs_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published stays, and what was measured is published by the next run without measuring it again."""
    where, path = f"journal:{tmp_path / 'studies.log'}", database_path(tmp_path / "database", H200)
    tune_in(where, tmp_path, FakeMeasurer(), [OTHER])
    before = path.read_bytes()

    disk = FillsTheDisk(1)
    first = FakeMeasurer()
    finals = first.finals

    def and_then_it_is_full(key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> tuple[Outcome, ...]:
        outcomes = finals(key, configs, seed)
        disk()
        return outcomes

    monkeypatch.setattr(first, "finals", and_then_it_is_full)
    try:
        with pytest.raises(DatabaseWriteError, match="File too large"):
            tune_in(where, tmp_path, first, [OTHER, KEY])
    finally:
        disk.make_room()
    assert path.read_bytes() == before
    again = FakeMeasurer()
    result = tune_in(where, tmp_path, again, [OTHER, KEY])
    assert again.trials == [] and len(again.final_seeds) == 1
    assert {record.key for record in read(result.path).records} == {OTHER, KEY}
