"""The small search: bounded, deterministic, and never mixing prefetch with its absence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from prefetch_compiler.bench.kernel.search import Found, neighbours, search, with_prefetch, without_prefetch
from prefetch_compiler.bench.kernel.stopwatch import rotation
from prefetch_compiler.config import KernelConfig, LoadPath, Merge, PrefetchKind

START = KernelConfig(block_kv=64, num_splits=8, num_warps=4, num_stages=2)
BEST = KernelConfig(block_kv=128, num_splits=16, num_warps=2, num_stages=3, launch_overlap=True)


def distance_us(config: KernelConfig) -> float:
    """A bowl around BEST."""
    ratios = [getattr(config, name) / getattr(BEST, name) for name in ("block_kv", "num_splits", "num_warps")]
    apart = sum(max(ratio, 1 / ratio) - 1 for ratio in ratios)
    return 10 + apart + abs(config.num_stages - BEST.num_stages) + (not config.launch_overlap) + config.prefetch_depth


class Bowl:
    """A measurer that counts."""

    def __init__(self, fails: KernelConfig | None = None) -> None:
        self.measured: list[KernelConfig] = []
        self.fails = fails

    def __call__(self, configs: Sequence[KernelConfig]) -> list[float | None]:
        self.measured += configs
        return [None if config == self.fails else distance_us(config) for config in configs]


def anything(config: KernelConfig) -> str | None:
    return None


@pytest.mark.parametrize("count", [1, 7, 24])
def test_it_measures_no_more_than_it_may_and_nothing_twice(count: int) -> None:
    bowl = Bowl()
    found = search([START], bowl, anything, count)
    assert found is not None
    assert len(bowl.measured) == found.measured == count
    assert len(set(bowl.measured)) == count
    assert found.time_us == min(map(distance_us, bowl.measured)) == distance_us(found.config)


def test_it_comes_down_to_the_best() -> None:
    found = search([START], Bowl(), anything, 200)
    assert found is not None
    assert found.config == BEST


def test_it_is_deterministic() -> None:
    one, other = Bowl(), Bowl()
    search([START], one, anything, 40)
    search([START], other, anything, 40)
    assert one.measured == other.measured


def test_what_fails_or_is_not_worth_it_is_left_out() -> None:
    bowl = Bowl(fails=BEST)

    def why_not(config: KernelConfig) -> str | None:
        return "too many warps" if config.num_warps == 8 else None

    found = search([START], bowl, why_not, 200)
    assert found is not None
    assert found.config != BEST
    assert all(config.num_warps != 8 for config in bowl.measured)
    assert search([BEST], Bowl(fails=BEST), anything, 1) is None
    assert search([START], Bowl(), lambda config: "no", 10) is None


def test_starts_that_make_no_sense_are_left_for_their_neighbours() -> None:
    bowl = Bowl()
    found = search([START], bowl, lambda config: "no" if config == START else None, 5)
    assert found is not None
    assert set(bowl.measured) <= set(neighbours(START))


def test_neighbours_keep_to_their_side_of_depth_0() -> None:
    assert all(config.prefetch_depth == 0 for config in neighbours(START))
    deep = replace(START, prefetch_depth=1)
    assert all(config.prefetch_depth > 0 for config in neighbours(deep))
    assert replace(deep, prefetch_kind=PrefetchKind.BULK) in set(neighbours(deep))
    assert replace(deep, prefetch_depth=2) in set(neighbours(deep))


def test_neighbours_of_a_value_between_the_knobs_own() -> None:
    splits = {config.num_splits for config in neighbours(replace(START, num_splits=29))}
    assert {24, 32} <= splits


def test_a_single_split_has_no_merge_to_vary() -> None:
    lone = replace(START, num_splits=1)
    assert all(config.merge is Merge.SEPARATE for config in neighbours(lone) if config.num_splits == 1)
    assert replace(lone, load_path=LoadPath.TMA) in set(neighbours(lone))


def test_starts_with_and_without_prefetch() -> None:
    deep = replace(START, prefetch_depth=3, prefetch_kind=PrefetchKind.BULK)
    assert without_prefetch([START, deep]) == [START]
    found = with_prefetch([START, deep])
    assert deep in found
    assert {(config.prefetch_depth, config.prefetch_kind) for config in found} == {
        (1, PrefetchKind.LINE), (1, PrefetchKind.BULK), (2, PrefetchKind.LINE), (2, PrefetchKind.BULK),
        (3, PrefetchKind.BULK),
    }  # fmt: skip


def test_a_found_config_says_how_many_were_measured() -> None:
    assert search([START], Bowl(), anything, 3) == Found(*_best_of(3), 3)


def _best_of(count: int) -> tuple[KernelConfig, float]:
    bowl = Bowl()
    search([START], bowl, anything, count)
    best = min(bowl.measured, key=distance_us)
    return best, distance_us(best)


def test_rounds_rotate_and_leave_out_who_is_done() -> None:
    assert list(rotation([3, 3, 3], 3)) == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    assert list(rotation([3, 1, 2], 3)) == [[0, 1, 2], [2, 0], [0]]
