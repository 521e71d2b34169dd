"""One key's study: what comes first, what costs nothing, and what every kind of failure costs."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from typing import Any

import optuna
import pytest

from prefetch_compiler.config import MAX_STAGES, MIN_BLOCK_KV, KernelConfig, Merge, Partition
from prefetch_compiler.database.key import TuningKey, parse_key
from prefetch_compiler.database.record import Evidence, TuningRecord
from prefetch_compiler.lower.precompile import CompiledKernel
from prefetch_compiler.select.footprint import kv_tile_bytes
from prefetch_compiler.select.heuristic import choose, choose_for_any_batch
from prefetch_compiler.tuning import study as study_module
from prefetch_compiler.tuning.compile_pool import CompileOutcome
from prefetch_compiler.tuning.errors import MissingSamplerPackageError, UnknownSamplerError
from prefetch_compiler.tuning.feasible import why_infeasible
from prefetch_compiler.tuning.pipeline import KeyRun
from prefetch_compiler.tuning.protocol import FailureKind, TrialFailure
from prefetch_compiler.tuning.remembered import WORKER, remember_all
from prefetch_compiler.tuning.sampler import SAMPLER_NAMES, sampler_choice
from prefetch_compiler.tuning.seeds import MAX_NEIGHBOURS, distance, seeds_for
from prefetch_compiler.tuning.study import STALE_AFTER, KeyStudy
from prefetch_compiler.tuning.study_store import open_study

from .fakes import H200, KEY, TOOLCHAIN, FakeMeasurer, plausible_us

DEFAULT = choose(KEY.spec(), H200)


def study_of(key: TuningKey = KEY, trials: int = 24, sampler: str = "tpe-group", storage: Any = None) -> KeyStudy:
    storage = optuna.storages.InMemoryStorage() if storage is None else storage
    seeds = seeds_for(key, H200)
    return open_study(key, H200, TOOLCHAIN, storage, seeds, trials=trials, sampler=sampler, seed=0)


def run_to_the_end(study: KeyStudy, measurer: FakeMeasurer, compiler: Any = None) -> None:
    run = KeyRun(study, compiler, measurer, seed=0, window=2)
    while run.step() is not None:
        pass


def measured_configs(measurer: FakeMeasurer) -> list[KernelConfig]:
    return [request.config for request in measurer.trials]


def test_the_default_is_measured_first_and_every_seed_before_the_sampler_is_asked() -> None:
    measurer = FakeMeasurer()
    run_to_the_end(study_of(), measurer)
    seeds = [seed.config for seed in seeds_for(KEY, H200)]
    assert seeds[0] == DEFAULT
    assert measured_configs(measurer)[: len(seeds)] == seeds


def test_a_default_between_the_declared_values_is_measured_exactly() -> None:
    key = parse_key("bfloat16 24q/6kv d128 q1 b8 s4096 bhsd-tma bool")
    assert choose(key.spec(), H200).num_splits == 5
    measurer = FakeMeasurer()
    run_to_the_end(study_of(key), measurer)
    assert measured_configs(measurer)[0] == choose(key.spec(), H200)


@pytest.mark.parametrize("sampler", ["tpe", "tpe-multivariate", "tpe-group+local", "cmaes", "random+local", "grid"])
def test_exactly_so_many_trials_are_paid_for_none_twice_and_none_infeasible(sampler: str) -> None:
    measurer, study = FakeMeasurer(), study_of(trials=30, sampler=sampler)
    run_to_the_end(study, measurer)
    configs = measured_configs(measurer)
    assert len(configs) == study.counted == 30
    assert len(set(configs)) == 30
    assert all(why_infeasible(KEY, config, H200) is None for config in configs)
    assert study.finished


def test_a_proposal_that_is_known_is_answered_from_what_was_measured() -> None:
    measurer, study = FakeMeasurer(), study_of(trials=24)
    first = study.ask()
    assert first is not None
    study.tell(first, measurer.trial(request := _request(first.config)))
    for _ in range(3):
        study._enqueue(request.config, "again")
    run_to_the_end(study, measurer)
    assert measured_configs(measurer).count(first.config) == 1
    repeated = [trial for trial in study.study.trials if "same_as" in trial.user_attrs.get("result", {})]
    assert len(repeated) >= 3
    assert {trial.value for trial in repeated if trial.user_attrs["config"] == first.config.encode()} == {
        plausible_us(KEY, first.config)
    }


def _request(config: KernelConfig) -> Any:
    from prefetch_compiler.tuning.protocol import TrialRequest

    return TrialRequest(KEY, config, 0)


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind.value not in ("inadmissible", "resources")])
def test_each_failure_costs_one_trial_and_the_study_goes_on(kind: FailureKind) -> None:
    def times(key: TuningKey, config: KernelConfig) -> float | FailureKind:
        return kind if config.num_warps == 2 else plausible_us(key, config)

    measurer, study = FakeMeasurer(times), study_of(trials=24)
    run_to_the_end(study, measurer)
    failed = [trial for trial in study.remembered() if trial.failure is kind]
    assert len(failed) == sum(config.num_warps == 2 for config in measured_configs(measurer)) > 0
    assert all(trial.counts and trial.detail for trial in failed)
    assert len(measurer.trials) == study.counted == 24
    best = study.best()
    assert best is not None and best.config.num_warps != 2


def test_a_study_in_which_everything_fails_ends() -> None:
    measurer, study = FakeMeasurer(lambda key, config: FailureKind.CRASH), study_of(trials=15)
    run_to_the_end(study, measurer)
    assert study.counted == 15 and study.best() is None and study.best_depth0() is None


class FakeCompiler:
    """Kernels with two warps spill; those with 8 time out."""

    def __init__(self) -> None:
        self.asked: list[KernelConfig] = []

    def submit(self, key: TuningKey, config: KernelConfig) -> Future[CompileOutcome]:
        self.asked.append(config)
        future: Future[CompileOutcome] = Future()
        if config.num_warps == 8:
            future.set_result(TrialFailure(FailureKind.COMPILE_TIMEOUT, "not compiled within 60 s", 60.0))
        else:
            future.set_result((CompiledKernel("kernel", 1024, 64, 4096 if config.num_warps == 1 else 0),))
        return future

    def close(self) -> None:
        return


def test_spilling_costs_nothing_and_a_slow_assembler_one_trial() -> None:
    measurer, study = FakeMeasurer(), study_of(trials=40)
    for warps in (1, 8):
        study._enqueue(replace(DEFAULT, num_warps=warps), "to see what it costs")
    run_to_the_end(study, measurer, FakeCompiler())
    assert all(config.num_warps not in (1, 8) for config in measured_configs(measurer))
    found = study.remembered()
    slow = [trial for trial in found if trial.failure is FailureKind.COMPILE_TIMEOUT]
    spilled = [trial for trial in found if trial.failure is FailureKind.RESOURCES]
    assert slow and all(trial.counts for trial in slow)
    assert spilled and not any(trial.counts for trial in spilled)
    assert len(measurer.trials) + len(slow) == 40


def test_what_spills_everywhere_does_not_go_on_for_ever() -> None:
    class Spilling(FakeCompiler):
        def submit(self, key: TuningKey, config: KernelConfig) -> Future[CompileOutcome]:
            future: Future[CompileOutcome] = Future()
            future.set_result((CompiledKernel("kernel", 1024, 255, 0 if config == DEFAULT else 9999),))
            return future

    measurer, study = FakeMeasurer(), study_of(trials=10)
    run_to_the_end(study, measurer, Spilling())
    assert measured_configs(measurer) == [DEFAULT]
    assert study.counted == 10
    assert len(study.remembered()) - sum(t.failure is FailureKind.INADMISSIBLE for t in study.remembered()) == 20


def test_the_default_may_spill() -> None:
    class SpillingDefault(FakeCompiler):
        def submit(self, key: TuningKey, config: KernelConfig) -> Future[CompileOutcome]:
            future: Future[CompileOutcome] = Future()
            future.set_result((CompiledKernel("kernel", 1024, 255, 600 if config == DEFAULT else 500),))
            return future

    measurer = FakeMeasurer()
    run_to_the_end(study_of(trials=8), measurer, SpillingDefault())
    assert len(measurer.trials) == 8


def test_a_tiny_space_is_exhausted_and_not_searched_for_ever() -> None:
    key = parse_key("float32 4q/4kv d8 q1 b1 s16 bhsd-none none")
    measurer, study = FakeMeasurer(), study_of(key, trials=100_000, sampler="random")
    run = KeyRun(study, None, measurer, seed=0, window=1)
    seen = 0
    while run.step() is not None and seen < 400:
        seen += 1
    assert study.exhausted and study.finished
    assert len(set(measured_configs(measurer))) == len(measurer.trials) == seen


def test_the_best_without_prefetch_is_always_tried() -> None:
    """Where prefetch helps, its own control is measured too."""

    def times(key: TuningKey, config: KernelConfig) -> float:
        return 10.0 - config.prefetch_depth + (config.block_kv / 64) + config.num_stages / 10

    study = study_of(trials=40)
    run_to_the_end(study, FakeMeasurer(times))
    best, bare = study.best(), study.best_depth0()
    assert best is not None and bare is not None and best.config.prefetch_depth > 0
    tried = {trial.config for trial in study.remembered() if trial.objective_us is not None}
    earlier_bests = [trial.config for trial in study.remembered() if trial.source == "the best without prefetch"]
    assert earlier_bests
    assert best.config.without_prefetch() in tried or best.number >= 36  # the very last trials leave no time for it


def test_records_of_near_keys_come_before_the_sampler() -> None:
    def record(name: str, config: KernelConfig) -> TuningRecord:
        return TuningRecord(parse_key(name), config, Evidence(TOOLCHAIN, 1, 0, "2026-01-01", None, 1.0))

    near = replace(DEFAULT, num_warps=8, block_kv=64)
    far = replace(DEFAULT, num_warps=8, block_kv=32)
    inadmissible = replace(DEFAULT, block_kv=256, num_stages=6)
    records = [
        record("float16 9q/3kv d64 q1 b1 s512 bhsd-tma none", far),
        record("bfloat16 32q/8kv d128 q1 b8 s4096 bhsd-tma bool", near),
        record("bfloat16 32q/8kv d128 q1 b2 s4096 bhsd-tma bool", inadmissible),
    ]
    seeds = seeds_for(KEY, H200, records)
    assert [seed.config for seed in seeds[:3]] == [DEFAULT, near, far]
    assert "b8" in seeds[1].source
    assert MAX_NEIGHBOURS == 3


def test_the_nearest_record_is_tried_with_other_programs_at_once() -> None:
    config = replace(DEFAULT, num_warps=4, num_stages=2, launch_overlap=True)
    evidence = Evidence(TOOLCHAIN, 1, 0, "2026-01-01", None, 1.0)
    seeds = [seed.config for seed in seeds_for(KEY, H200, [TuningRecord(KEY, config, evidence)])]
    otherwise = (replace(config, num_stages=3), replace(config, launch_overlap=False), replace(config, num_warps=2))
    assert seeds[:2] == [DEFAULT, config]
    assert set(otherwise) <= set(seeds)
    deepest = replace(config, num_stages=MAX_STAGES, block_kv=16)
    with_deepest = seeds_for(KEY, H200, [TuningRecord(KEY, deepest, evidence)])
    assert deepest in [seed.config for seed in with_deepest]


@pytest.mark.parametrize("name", [
    "bfloat16 32q/8kv d128 q1 b256 s128 bhsd-tma bool",
    "bfloat16 32q/1kv d128 q1 b256 s128 bhsd-tma bool",
])  # fmt: skip
def test_there_are_seeds_where_the_heuristic_takes_the_smallest_tiles(name: str) -> None:
    key = parse_key(name)
    seeds = seeds_for(key, H200)
    assert seeds[0].config.block_kv == MIN_BLOCK_KV
    assert len(seeds) > 1


@pytest.mark.parametrize(("trials", "shared", "ahead"), [(10, False, 10), (10, True, 4), (64, True, 8), (2, True, 2)])
def test_what_depends_on_nothing_is_compiled_ahead(trials: int, shared: bool, ahead: int) -> None:
    """All of it by a worker alone, and a few at a time by one of several, so that others find some too."""

    class Counting:
        submitted = 0

        def submit(self, key: TuningKey, config: KernelConfig) -> Future[CompileOutcome]:
            self.submitted += 1
            return Future()

        def close(self) -> None:
            return

    compiler = Counting()
    KeyRun(study_of(trials=trials), compiler, FakeMeasurer(), seed=0, window=16, shared=shared).fill()
    assert compiler.submitted == ahead


def test_distance_counts_doublings_and_other_fields_weigh_more() -> None:
    assert distance(KEY, KEY) == 0
    assert distance(KEY, KEY.at(batch=32, capacity=1024)) == 3 + 2
    assert distance(KEY, replace(KEY, dtype="float16")) == 4


def test_every_sampler_has_a_name_and_an_unknown_one_is_refused() -> None:
    for name in SAMPLER_NAMES:
        assert isinstance(sampler_choice(name).make(0), optuna.samplers.BaseSampler)
    with pytest.raises(UnknownSamplerError, match=r"'tpee'.*tpe-group"):
        sampler_choice("tpee")


def test_a_sampler_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefetch_compiler.tuning.sampler.find_spec", lambda name: None)
    with pytest.raises(MissingSamplerPackageError, match="cmaes"):
        sampler_choice("cmaes")
    assert sampler_choice("tpe").name == "tpe"


def test_storage_remembers_what_was_measured() -> None:
    measurer, study = FakeMeasurer(), study_of(trials=10)
    run_to_the_end(study, measurer)
    read = [trial for trial in remember_all(study.study.trials) if trial.objective_us is not None]
    assert {trial.config: trial.objective_us for trial in read} == {
        config: pytest.approx(plausible_us(KEY, config)) for config in measured_configs(measurer)
    }
    assert all(len(trial.fills) == 3 for trial in read)
    assert read[0].source == "heuristic"


def test_a_deaf_sampler_is_told_failures_as_bad_times() -> None:
    def times(key: TuningKey, config: KernelConfig) -> float | FailureKind:
        return FailureKind.CRASH if config.num_warps == 2 else plausible_us(key, config)

    study = study_of(trials=20, sampler="cmaes")
    run_to_the_end(study, FakeMeasurer(times))
    failed = {trial.number for trial in study.remembered() if trial.failure is FailureKind.CRASH}
    told = [trial for trial in study.study.trials if trial.number in failed]
    slowest = max(trial.objective_us for trial in study.remembered() if trial.objective_us is not None)
    assert told and any(trial.value is not None and trial.value >= slowest for trial in told[1:])
    assert all(trial.objective_us is None for trial in study.remembered() if trial.number in failed)


@pytest.mark.parametrize(("waited", "tried_again"), [(STALE_AFTER - timedelta(minutes=1), 0), (STALE_AFTER, 1)])
def test_a_trial_of_another_host_is_given_up_when_no_trial_takes_as_long(
    waited: timedelta, tried_again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its worker is alive cannot be seen from here."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + waited

    storage = optuna.storages.InMemoryStorage()
    taken = study_of(storage=storage).ask()
    assert taken is not None
    taken.trial.set_user_attr(WORKER, "another-host:1:1")
    monkeypatch.setattr(study_module, "datetime", Later)
    study, measurer = study_of(storage=storage), FakeMeasurer()
    run_to_the_end(study, measurer)
    assert measured_configs(measurer).count(taken.config) == tried_again


@pytest.mark.parametrize("sizes", ["b1 s65536", "b32 s8192"])
def test_what_deterministic_results_take_is_tried(sizes: str) -> None:
    key = parse_key(f"bfloat16 32q/1kv d128 q1 {sizes} bhsd-tma bool")
    assert choose_for_any_batch(key.spec(), H200) in [seed.config for seed in seeds_for(key, H200)]


def test_a_search_of_sixteen_trials_sees_every_kind_of_seed() -> None:
    """The nearest record's variants and the heuristic's are many: they must not take all that a short search has."""
    key = parse_key("bfloat16 28q/4kv d128 q1 b128 s1024 bhsd-tma bool")
    config = replace(choose(key.spec(), H200), num_splits=4, partition=Partition.STRIDED)
    evidence = Evidence(TOOLCHAIN, 1, 0, "2026-01-01", None, 1.0)
    seeds = seeds_for(key, H200, [TuningRecord(key, config, evidence)])
    assert len(seeds) > 16
    assert {seed.source for seed in seeds[:16]} == {seed.source for seed in seeds}


@pytest.mark.parametrize(("sizes", "per_sm"), [
    ("32q/8kv d128 q1 b64 s4096", 4), ("28q/4kv d128 q1 b128 s1024", 4), ("32q/1kv d128 q1 b256 s128", 2),
    ("32q/8kv d128 q1 b256 s4096", 4),
])  # fmt: skip
def test_as_many_programs_as_an_sm_will_get_or_four_are_tried_at_once(sizes: str, per_sm: int) -> None:
    key = parse_key(f"bfloat16 {sizes} bhsd-tma bool")
    found = [seed.config for seed in seeds_for(key, H200) if seed.source == "several programs at once"]
    assert found
    for config in found:
        tiles = config.num_stages * kv_tile_bytes(key.spec(), config.block_kv)
        assert config.num_splits == 1 and per_sm * tiles <= H200.shared_memory_bytes
    alone = key.at(batch=1, capacity=4096)
    assert all(seed.source != "several programs at once" for seed in seeds_for(alone, H200))


def test_large_tiles_are_tried_for_many_rows() -> None:
    key = parse_key("bfloat16 32q/8kv d128 q16 b16 s8192 bhsd-tma bool_rows")
    found = [seed.config for seed in seeds_for(key, H200)]
    assert any((one.block_kv, one.num_warps, one.num_stages) == (128, 8, 3) for one in found)


def test_long_sequences_alone_are_divided_without_a_second_kernel() -> None:
    key = parse_key("bfloat16 32q/8kv d128 q1 b32 s8192 bhsd-tma bool")
    found = [seed.config for seed in seeds_for(key, H200)]
    assert any((one.num_splits, one.partition, one.merge) == (2, Partition.CHUNKED, Merge.INPLACE) for one in found)


@pytest.mark.parametrize("name", ["32q/8kv d128 q1 b32 s8192 bhsd-tma bool", "32q/32kv d64 q1 b16 s4096 bhsd-tma none"])
def test_as_many_streamed_programs_as_run_at_once_are_tried(name: str) -> None:
    key = parse_key(f"bfloat16 {name}")
    streamed = [seed.config for seed in seeds_for(key, H200) if seed.config.partition is Partition.STREAMED]
    assert {config.num_splits * key.kv_heads // (H200.sm_count - key.kv_heads) for config in streamed} == {1, 2}
    assert {config.launch_overlap for config in streamed} == {True}
    alone = key.at(batch=1, capacity=8192)
    assert all(seed.config.partition is not Partition.STREAMED for seed in seeds_for(alone, H200))
