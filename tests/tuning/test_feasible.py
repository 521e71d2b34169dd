"""What is pruned before it costs anything, and that the heuristic's choice never is."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder, Partition, PrefetchKind
from prefetch_compiler.database.key import TuningKey, parse_key
from prefetch_compiler.device import REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.errors import InadmissibleConfigError
from prefetch_compiler.lower.precompile import CompiledKernel
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.heuristic import choose
from prefetch_compiler.space import KNOBS, Point, config_at
from prefetch_compiler.tuning.distributions import SearchSpace
from prefetch_compiler.tuning.feasible import SPILL_LIMIT_BYTES, spill_limit, why_infeasible, why_too_large
from prefetch_compiler.tuning.seeds import seeds_for

H200 = REFERENCE_DEVICES[90]
LLAMA = parse_key("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool")
LATENTS = parse_key("bfloat16 128q/1kv d512 q1 b16 s8192 bhsd-tma bool rope64")
PLAIN = KernelConfig(block_kv=64, num_splits=1, num_warps=4, num_stages=2)

KEYS = st.builds(
    parse_key,
    st.builds(
        "{} {} d{} q{} b{} s{} bhsd-{} {}".format,
        st.sampled_from(["float16", "bfloat16", "float32"]),
        st.sampled_from(["32q/8kv", "32q/32kv", "9q/3kv", "71q/1kv", "40q/8kv"]),
        st.sampled_from([8, 40, 64, 96, 128, 256]),
        st.sampled_from([1, 4, 16]),
        st.sampled_from([1, 2, 16, 64, 256]),
        st.sampled_from([1, 16, 64, 512, 4096, 131072]),
        st.sampled_from(["tma", "rows", "none"]),
        st.sampled_from(["bool", "none", "causal", "bool_rows", "additive-float16"]),
    ),
)
DEVICES = st.sampled_from(sorted(REFERENCE_DEVICES.values(), key=lambda device: device.arch))


@given(KEYS, DEVICES)
def test_the_heuristics_choice_is_feasible_and_can_be_proposed(key: TuningKey, device: DeviceProfile) -> None:
    try:
        default = choose(key.spec(), device)
    except InadmissibleConfigError:
        reject()  # float32 rows of 256 for 71 query heads do not fit an A10 in any configuration
    assert why_infeasible(key, default, device) is None
    space = SearchSpace(key, device, [default])
    assert space.holds(default)
    trial = optuna.trial.FixedTrial(space.params(default))
    assert space.suggest(trial) == default


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (replace(PLAIN, num_splits=65), "65 splits share 64 tiles"),
        (replace(PLAIN, num_splits=17), "more than 16 for each of 132 SMs"),
        (replace(PLAIN, block_kv=256, num_stages=4), "shared memory"),
        (replace(PLAIN, num_splits=16, prefetch_depth=4), "nothing lies 4 tiles ahead in a share of 4"),
        (replace(PLAIN, operand_order=OperandOrder.KQ, num_stages=1), "miscompiled"),
        (replace(PLAIN, operand_order=OperandOrder.QK64, num_warps=2), "2 warps are no warpgroup"),
        (replace(PLAIN, num_splits=67, partition=Partition.STREAMED), "more than 4 for each of 132 SMs"),
    ],
)
def test_reasons(config: KernelConfig, why: str) -> None:
    assert why in (why_infeasible(LLAMA.at(batch=16, capacity=4096), config, H200) or "")


def test_blocks_larger_than_the_capacity_are_useless() -> None:
    small = LLAMA.at(batch=1, capacity=64)
    assert "half empty" in (why_infeasible(small, replace(PLAIN, block_kv=128), H200) or "")
    assert why_infeasible(small, PLAIN, H200) is None


def test_streamed_programs_share_the_tiles_of_all_sequences() -> None:
    streamed = replace(PLAIN, num_splits=66, partition=Partition.STREAMED)
    assert why_infeasible(LLAMA, streamed, H200) is None
    assert "66 splits share 32 tiles" in (why_infeasible(LLAMA.at(batch=16, capacity=128), streamed, H200) or "")
    assert "nothing to balance" in (why_infeasible(LLAMA.at(batch=1, capacity=8192), streamed, H200) or "")
    assert "not streamed" in (why_infeasible(LATENTS, streamed, H200) or "")


def test_what_uses_its_last_tile_or_program_is_kept() -> None:
    assert why_infeasible(LLAMA, replace(PLAIN, num_splits=16), H200) is None
    assert why_infeasible(LLAMA, replace(PLAIN, num_splits=16, prefetch_depth=3), H200) is None


def kernel(shared: int = 0, spills: int | None = 0) -> CompiledKernel:
    return CompiledKernel("kernel", shared, 255, spills)


def test_shared_memory_and_spills_are_judged_by_every_kernel() -> None:
    fits = kernel(H200.shared_memory_bytes)
    assert why_too_large([fits], H200, SPILL_LIMIT_BYTES) is None
    assert "shared" in (why_too_large([fits, kernel(H200.shared_memory_bytes + 1)], H200, SPILL_LIMIT_BYTES) or "")
    assert why_too_large([kernel(spills=128)], H200, SPILL_LIMIT_BYTES) is None
    assert "spills 129" in (why_too_large([kernel(spills=129)], H200, SPILL_LIMIT_BYTES) or "")
    assert why_too_large([kernel(spills=None)], H200, SPILL_LIMIT_BYTES) is None


def test_a_default_that_spills_raises_the_limit_to_its_own() -> None:
    assert spill_limit([kernel(spills=16)]) == SPILL_LIMIT_BYTES
    assert spill_limit([kernel(spills=16), kernel(spills=600)]) == 600


POINTS = st.fixed_dictionaries({knob.name: st.sampled_from(knob.values) for knob in KNOBS})


@given(POINTS, KEYS, DEVICES)
def test_a_declared_point_that_is_feasible_can_be_proposed(point: Point, key: TuningKey, device: DeviceProfile) -> None:
    """Narrowing the space loses nothing but infeasible points."""
    config = config_at(point)
    if why_infeasible(key, config, device) is None:
        assert SearchSpace(key, device).holds(config)


def test_values_that_no_configuration_may_take_are_not_proposed() -> None:
    a100 = SearchSpace(LLAMA, REFERENCE_DEVICES[80])
    assert a100.distributions["load_path"].single()
    assert a100.distributions["launch_overlap"].single()
    assert a100.distributions["prefetch_kind"].choices == ("line", "linekeep")
    assert not SearchSpace(LLAMA, H200).distributions["load_path"].single()


def test_conditional_parameters_exist_only_where_they_mean_something() -> None:
    space = SearchSpace(LLAMA, H200)
    assert {"merge", "prefetch_kind"}.isdisjoint(space.params(PLAIN))
    both = replace(PLAIN, num_splits=4, prefetch_depth=2, prefetch_kind=PrefetchKind.BULK)
    assert {"merge", "prefetch_kind"} <= set(space.params(both))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(100):
        trial = study.ask()
        config = space.suggest(trial)
        assert ("merge" in trial.params) == (config.num_splits > 1)
        assert ("prefetch_kind" in trial.params) == config.prefetches
        assert space.params(config) == trial.params


def test_tiles_and_warps_mean_nothing_to_a_producer_warp() -> None:
    space = SearchSpace(LATENTS, H200)
    assert space.distributions["load_path"].choices == ("pointer", "tma", "producer")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    met = set()
    for _ in range(100):
        trial = study.ask()
        config = space.suggest(trial)
        assert space.params(config) == trial.params
        if config.load_path is LoadPath.PRODUCER:
            assert trial.params.keys() <= {"load_path", "num_splits", "launch_overlap", "partition"}
            assert config == config.with_producer()
            assert why_inadmissible(LATENTS.spec(), config, H200) is None
            met.add(config)
    assert len(met) > 10
    assert space.holds(PLAIN.with_producer())
    assert PLAIN.with_producer() in space.neighbours(replace(PLAIN, block_kv=64, num_stages=2))


PADDED = replace(PLAIN, operand_order=OperandOrder.QK64)


@pytest.mark.parametrize(
    ("key", "arch", "why"),
    [
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool", 90, None),
        ("bfloat16 32q/1kv d128 q1 b16 s4096 bhsd-tma bool", 90, None),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool", 80, "for the products of sm_90"),
        ("bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool", 100, "for the products of sm_90"),
        ("bfloat16 33q/1kv d128 q1 b16 s4096 bhsd-tma bool", 90, "33 query rows are as many"),
        ("bfloat16 32q/8kv d128 q16 b16 s4096 bhsd-tma bool", 90, "64 query rows are as many"),
        ("float32 32q/8kv d128 q1 b16 s4096 bhsd-tma bool", 90, "16-bit numbers"),
        ("bfloat16/int8 32q/8kv d128 q1 b16 s4096 bhsd-tma bool", 90, "kq"),
        ("bfloat16 16q/1kv d512 q1 b16 s8192 bhsd-tma bool rope64", 90, "are not padded"),
    ],
)
def test_which_rows_are_padded_to_a_warpgroups(key: str, arch: int, why: str | None) -> None:
    parsed, device = parse_key(key), REFERENCE_DEVICES[arch]
    reason = why_inadmissible(parsed.spec(), PADDED, device)
    assert reason == why if why is None else why in str(reason)
    space = SearchSpace(parsed, device)
    assert ("qk64" in space.distributions["operand_order"].choices) == (why is None)
    tried = [seed.config.operand_order for seed in seeds_for(parsed, device)]
    assert (OperandOrder.QK64 in tried) == (why is None and parsed.spec().rows >= 16)


def test_both_kernels_over_latents_are_tried_first() -> None:
    for key in (LATENTS, replace(LATENTS, group=16)):
        tried = [seed.config.load_path for seed in seeds_for(key, H200)]
        assert {LoadPath.PRODUCER, LoadPath.TMA} <= set(tried)


def test_neighbours_differ_in_one_knob_by_one_declared_step() -> None:
    space = SearchSpace(LLAMA, H200)
    config = replace(PLAIN, num_splits=5, load_path=LoadPath.TMA)
    found = space.neighbours(config)
    assert replace(config, num_splits=4) in found
    assert replace(config, num_splits=6) in found
    assert replace(config, block_kv=256) not in found
    names = {knob.name for knob in KNOBS}
    for other in found:
        changed = {name for name in names if getattr(other, name) != getattr(config, name)}
        assert len(changed - {"merge", "prefetch_kind"}) <= 1 and changed
