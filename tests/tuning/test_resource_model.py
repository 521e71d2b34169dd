"""The model behind --compile-only: each of its effects, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prefetch_compiler.config import KernelConfig, Merge
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower.precompile import CompiledKernel
from prefetch_compiler.tuning.resource_model import (
    LIMITS,
    ceiling_us,
    limits_of,
    modelled_us,
    resident_programs,
)

from .fakes import H200

KEY = parse_key("bfloat16 32q/8kv d128 q1 b64 s4096 bhsd-tma bool")
SPEC = KEY.spec()
CONFIG = KernelConfig(block_kv=64, num_splits=1, num_warps=4, num_stages=4)
KERNELS = (CompiledKernel("split_kv_decode", 100_000, 128, 0),)


def us(config: KernelConfig = CONFIG, held: int = 4096, kernels: tuple[CompiledKernel, ...] = KERNELS) -> float:
    return modelled_us(SPEC, config, kernels, H200, held)


@pytest.mark.parametrize(
    ("kernel", "warps", "expected"),
    [
        (CompiledKernel("k", 100_000, 32, 0), 4, 2),  # 228 KiB of shared memory, 1 KiB kept of each program
        (CompiledKernel("k", 0, 128, 0), 4, 4),  # 65,536 registers
        (CompiledKernel("k", 0, 16, 0), 8, 8),  # 2,048 threads
        (CompiledKernel("k", 0, 16, 0), 1, 32),  # 32 programs
        (CompiledKernel("k", 232_448, 255, 0), 8, 1),
    ],
)
def test_occupancy_is_the_least_of_four_limits(kernel: CompiledKernel, warps: int, expected: int) -> None:
    assert resident_programs(kernel, replace(CONFIG, num_warps=warps), LIMITS[90]) == expected


def test_no_configuration_reads_faster_than_the_memory() -> None:
    for stages in (1, 2, 4, 6):
        floor = ceiling_us(SPEC.kv_bytes_per_key * 4096, LIMITS[90])
        assert us(replace(CONFIG, num_stages=stages)) > floor
    assert ceiling_us(4_800_000_000_000, LIMITS[90]) == pytest.approx(1e6)  # 4.8 TB at 4.8 TB/s


def test_fewer_bytes_in_flight_than_latency_needs_cost_in_proportion() -> None:
    starved = (CompiledKernel("k", 200_000, 128, 0),)  # one program an SM
    one, two = (
        us(replace(CONFIG, block_kv=16, num_stages=2), kernels=starved),
        us(replace(CONFIG, block_kv=16, num_stages=3), kernels=starved),
    )
    assert (one - 2.8) / (two - 2.8) == pytest.approx(2.0)


def test_idle_multiprocessors_cost() -> None:
    few = parse_key("bfloat16 32q/8kv d128 q1 b1 s8192 bhsd-tma bool").spec()
    unsplit = modelled_us(few, CONFIG, KERNELS, H200, 8192)
    split = modelled_us(few, replace(CONFIG, num_splits=16), KERNELS, H200, 8192)
    assert unsplit > 4 * split


def test_splits_beyond_the_keys_held_do_nothing() -> None:
    spec = parse_key("bfloat16 32q/8kv d128 q1 b1 s8192 bhsd-tma bool").spec()
    times = {modelled_us(spec, replace(CONFIG, num_splits=splits), KERNELS, H200, 128) for splits in (2, 8, 64)}
    assert len(times) == 1


def test_merging_and_launching_cost() -> None:
    split = replace(CONFIG, num_splits=2)
    assert us(replace(split, merge=Merge.INPLACE)) - us(split) == pytest.approx(3.5 - 2.0)
    assert us(split) - us(replace(split, launch_overlap=True)) == pytest.approx(1.0 + 1.0)


def test_every_reference_device_has_limits_and_a_newer_one_takes_the_newest() -> None:
    assert set(LIMITS) == set(REFERENCE_DEVICES)
    assert limits_of(replace(H200, arch=103)) == LIMITS[100]
    assert limits_of(replace(H200, arch=75)) == LIMITS[80]
