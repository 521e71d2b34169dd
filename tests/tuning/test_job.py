"""The whole job with a fake measurer: records, resuming after a kill, and what goes wrong key by key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.key import TuningKey, parse_key
from prefetch_compiler.database.store import read
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.select.heuristic import choose
from prefetch_compiler.tuning.events import Ending, Event, JobFinished, KeyFinished, TrialFinished
from prefetch_compiler.tuning.feasible import why_infeasible
from prefetch_compiler.tuning.finals import HELD_OUT_SEED_OFFSET
from prefetch_compiler.tuning.job import JobResult, JobSettings, database_path, tune_keys
from prefetch_compiler.tuning.protocol import FailureKind
from prefetch_compiler.tuning.remembered import remember_all
from prefetch_compiler.tuning.storage import open_storage
from prefetch_compiler.tuning.study_store import study_name

from .fakes import H200, KEY, TOOLCHAIN, FakeMeasurer, plausible_us

OTHER = KEY.at(batch=16, capacity=1024)
QUICK = JobSettings(trials=24, sampler="tpe-group", window=2)


def tune(
    tmp_path: Path,
    measurer: FakeMeasurer,
    keys: list[TuningKey] | None = None,
    settings: JobSettings = QUICK,
    events: list[Event] | None = None,
) -> JobResult:
    return tune_in(str(tmp_path / "studies.db"), tmp_path, measurer, keys, settings, events)


def tune_in(
    storage: str,
    tmp_path: Path,
    measurer: FakeMeasurer,
    keys: list[TuningKey] | None = None,
    settings: JobSettings = QUICK,
    events: list[Event] | None = None,
) -> JobResult:
    return tune_keys(
        keys or [KEY],
        measurer,
        profile=H200,
        toolchain=lambda key, config: TOOLCHAIN,
        storage=open_storage(storage),
        out=tmp_path / "database",
        settings=settings,
        report=(events if events is not None else []).append,
    )


def test_a_record_carries_its_evidence(tmp_path: Path) -> None:
    measurer = FakeMeasurer(noise=0.001)
    result = tune(tmp_path, measurer)
    (record,) = read(result.path).records
    measurement = record.evidence.measurement
    assert measurement is not None
    assert record.key == KEY
    assert record.evidence.toolchain == TOOLCHAIN
    assert record.evidence.trials == 24
    assert why_infeasible(KEY, record.config, H200) is None
    assert measurement.default.config == choose(KEY.spec(), H200)
    assert measurement.best_depth0.config.prefetch_depth == 0
    assert measurement.timing.median_us <= measurement.default.timing.median_us
    assert [fill.held for fill in measurement.fills] == [512, 2048, 4096]
    assert measurement.ceiling_share == pytest.approx(0.5)
    assert measurer.final_seeds == [HELD_OUT_SEED_OFFSET]
    assert {request.seed for request in measurer.trials} == {0}
    assert result.keys[0].gain == measurement.default.timing.median_us / measurement.timing.median_us


def test_the_default_is_recorded_where_nothing_beats_it(tmp_path: Path) -> None:
    default = choose(KEY.spec(), H200)

    def times(key: TuningKey, config: KernelConfig) -> float:
        return 20.0 if config == default else 20.0 + config.num_stages / 10

    result = tune(tmp_path, FakeMeasurer(times, noise=0.05))
    assert result.keys[0].ending is Ending.DEFAULT
    assert read(result.path).records[0].config == default


def test_a_lucky_trial_does_not_become_the_record(tmp_path: Path) -> None:
    """All are equally fast; trials are noisy, and the finals show it."""
    result = tune(tmp_path, FakeMeasurer(lambda key, config: 20.0, noise=0.2, rounds=15))
    assert result.keys[0].ending is Ending.DEFAULT


def test_keys_are_independent_and_the_second_profits_from_the_first(tmp_path: Path) -> None:
    events: list[Event] = []
    measurer = FakeMeasurer()
    result = tune(tmp_path, measurer, [OTHER, KEY, KEY], events=events)
    assert [record.key for record in read(result.path).records] == [KEY, OTHER]
    assert len(measurer.trials) == 48
    finished = [event for event in events if isinstance(event, KeyFinished)]
    assert [event.trials for event in finished] == [24, 24]
    last = events[-1]
    assert isinstance(last, JobFinished) and last.records == 2 and last.failed == 0
    gains = [event.gain or 0 for event in finished]
    assert last.gain == pytest.approx((gains[0] * gains[1]) ** 0.5)
    names = optuna.get_all_study_names(open_storage(str(tmp_path / "studies.db")))
    assert set(names) == {study_name(key, H200, TOOLCHAIN) for key in (KEY, OTHER)}


def test_a_key_whose_configurations_all_fail_leaves_no_record_and_the_next_is_tuned(tmp_path: Path) -> None:
    def times(key: TuningKey, config: KernelConfig) -> float | FailureKind:
        return FailureKind.CRASH if key == OTHER else plausible_us(key, config)

    result = tune(tmp_path, FakeMeasurer(times), [OTHER, KEY])
    failed = {event.key: event for event in result.keys}[OTHER.name]
    assert failed.ending is Ending.FAILED and "finalists failed" in failed.reason and "crash" in failed.reason
    assert [record.key for record in read(result.path).records] == [KEY]


def test_a_key_that_no_configuration_fits_is_reported_and_left_out(tmp_path: Path) -> None:
    key = parse_key("float32 71q/1kv d256 q1 b1 s4096 bhsd-tma bool")
    device = REFERENCE_DEVICES[86]
    result = tune_keys(
        [key, KEY],
        FakeMeasurer(),
        profile=device,
        toolchain=lambda key, config: TOOLCHAIN,
        storage=optuna.storages.InMemoryStorage(),
        out=tmp_path,
        settings=QUICK,
    )
    failed = {event.key: event.ending is Ending.FAILED for event in result.keys}
    assert failed == {KEY.name: False, key.name: True}
    assert result.finished.failed == 1


def test_running_it_again_does_nothing_and_retune_begins_anew(tmp_path: Path) -> None:
    first = tune(tmp_path, FakeMeasurer())
    again = FakeMeasurer()
    second = tune(tmp_path, again)
    assert second.keys[0].ending is Ending.KNOWN
    assert again.trials == [] and again.final_seeds == []
    assert second.finished.gain == first.finished.gain
    anew = FakeMeasurer()
    tune(tmp_path, anew, settings=replace(QUICK, retune=True))
    assert len(anew.trials) == 24


def test_more_trials_than_before_continue_the_study(tmp_path: Path) -> None:
    first, more = FakeMeasurer(), FakeMeasurer()
    tune(tmp_path, first)
    result = tune(tmp_path, more, settings=replace(QUICK, trials=30))
    assert len(more.trials) == 6
    assert {request.config for request in first.trials}.isdisjoint(request.config for request in more.trials)
    assert read(result.path).records[0].evidence.trials == 30


def test_a_lost_database_is_written_again_without_new_trials(tmp_path: Path) -> None:
    result = tune(tmp_path, FakeMeasurer())
    result.path.unlink()
    again = FakeMeasurer()
    tune(tmp_path, again)
    assert again.trials == [] and len(again.final_seeds) == 1
    assert len(read(result.path).records) == 1


def test_each_record_is_published_before_the_next_key_is_done(tmp_path: Path) -> None:
    path = database_path(tmp_path / "database", H200)
    seen: list[int] = []

    def times(key: TuningKey, config: KernelConfig) -> float:
        seen.append(len(read(path).records) if path.exists() else 0)
        return plausible_us(key, config)

    tune(tmp_path, FakeMeasurer(times), [KEY, OTHER])
    assert seen[0] == 0 and seen[-1] == 1


def test_a_time_limit_settles_what_was_found(tmp_path: Path) -> None:
    measurer = FakeMeasurer(pause=lambda: time.sleep(0.05))
    result = tune(tmp_path, measurer, settings=replace(QUICK, trials=1000, timeout_s=1.0))
    assert 1 <= len(measurer.trials) < 40
    assert result.keys[0].ending in (Ending.TUNED, Ending.DEFAULT)
    more = FakeMeasurer()
    tune(tmp_path, more, settings=replace(QUICK, trials=len(measurer.trials) + 5))
    assert len(more.trials) == 5


def test_progress_says_where_the_search_stands(tmp_path: Path) -> None:
    events: list[Event] = []
    tune(tmp_path, FakeMeasurer(), events=events)
    trials = [event for event in events if isinstance(event, TrialFinished)]
    assert [event.trial for event in trials] == list(range(1, 25))
    bests = [event.best_us or 0 for event in trials]
    assert bests == sorted(bests, reverse=True)
    last = trials[-1]
    assert last.eta_s == 0 and last.ceiling_share == pytest.approx(0.5)
    held = sum((512, 2048, 4096)) * KEY.spec().kv_bytes_per_key
    assert last.gb_per_s == pytest.approx(held / (3 * bests[-1] * 1e-6) / 1e9)


def test_the_search_comes_near_the_best_of_the_declared_points(tmp_path: Path) -> None:
    """The best of 3,000 random points of the space, by a made-up cost, against 64 trials."""
    import random

    from prefetch_compiler.tuning.distributions import SearchSpace

    generator, space = random.Random(1), SearchSpace(KEY, H200)
    drawn = [config for _ in range(6000) if why_infeasible(KEY, config := space.draw(generator), H200) is None]
    optimum = min(plausible_us(KEY, config) for config in drawn)
    result = tune(tmp_path, FakeMeasurer(), settings=JobSettings())
    assert result.keys[0].time_us is not None
    assert len(drawn) > 1500
    assert result.keys[0].time_us <= optimum * 1.03


# Kills, and several workers


def job(
    storage: str, tmp_path: Path, trials: int, log: str, slow_ms: int = 0, workers: int = 1
) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("job_run.py")
    arguments = [storage, str(tmp_path / "database"), str(trials), str(tmp_path / log), str(slow_ms), str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_killed_study_resumes_to_the_same_number_of_trials(tmp_path: Path) -> None:
    storage = str(tmp_path / "studies.db")
    child = job(storage, tmp_path, 30, "log", slow_ms=40)
    deadline = time.monotonic() + 60
    while len(lines(tmp_path / "log")) < 8:
        assert time.monotonic() < deadline and child.poll() is None, child.communicate()[1]
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    before = lines(tmp_path / "log")
    assert len(before) < 30

    measurer = FakeMeasurer()
    result = tune(tmp_path, measurer, settings=replace(QUICK, trials=30))
    (study,) = (
        optuna.load_study(study_name=name, storage=open_storage(storage))
        for name in optuna.get_all_study_names(open_storage(storage))
    )
    trials = study.trials
    assert sum(trial.counts for trial in remember_all(trials)) == 30
    assert not any(trial.state is optuna.trial.TrialState.RUNNING for trial in trials)
    # Only what the killed process was measuring at that moment is measured again.
    assert 30 <= len(before) + len(measurer.trials) <= 31
    assert read(result.path).records[0].evidence.trials == 30
