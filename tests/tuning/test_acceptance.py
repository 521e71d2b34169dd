"""The rule of acceptance: noise never makes a winner, a real gain does, and what fails drops out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.tuning.acceptance import MAX_LUCK, beats, luck, percentile, timing_of
from prefetch_compiler.tuning.finals import ceiling_share, gb_per_s, judge
from prefetch_compiler.tuning.protocol import FailureKind, Outcome, TrialFailure, TrialResult

from .fakes import KEY, result_of

DEFAULT = KernelConfig(block_kv=64, num_splits=1, num_warps=4, num_stages=2)
OTHERS = tuple(replace(DEFAULT, num_splits=splits) for splits in (2, 4, 8, 16))


def measured(samples: list[float]) -> TrialResult:
    return result_of(KEY, samples)


def noisy(generator: random.Random, mean: float, rounds: int, noise: float) -> list[float]:
    return [mean * (1 + noise * generator.gauss(0, 1)) for _ in range(rounds)]


def test_luck_is_the_tail_of_the_binomial() -> None:
    assert luck(7, 7) == 1 / 128
    assert luck(0, 5) == 1.0
    assert luck(4, 5) == pytest.approx(6 / 32)


def test_six_rounds_are_too_few_and_seven_suffice() -> None:
    assert not beats(measured([90.0] * 6), measured([100.0] * 6))
    assert beats(measured([90.0] * 7), measured([100.0] * 7))


def test_a_gain_below_half_a_percent_is_none() -> None:
    assert not beats(measured([99.6] * 30), measured([100.0] * 30))
    assert beats(measured([99.4] * 30), measured([100.0] * 30))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([0.002, 0.02, 0.2]), st.integers(7, 40))
def test_equal_configurations_hardly_ever_beat_one_another(seed: int, noise: float, rounds: int) -> None:
    """By the rule at most 1 % of 200 comparisons do; 13 or more would be a chance of 1e-7."""
    generator = random.Random(seed)
    wins = sum(
        beats(measured(noisy(generator, 20, rounds, noise)), measured(noisy(generator, 20, rounds, noise)))
        for _ in range(200)
    )
    assert MAX_LUCK == 0.01
    assert wins < 13


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([0.002, 0.02, 0.2]), st.integers(7, 40))
def test_the_best_of_several_equal_ones_hardly_ever_replaces_the_default(seed: int, noise: float, rounds: int) -> None:
    generator = random.Random(seed)
    configs = (DEFAULT, *OTHERS)
    lost = 0
    for _ in range(100):
        outcomes = [measured(noisy(generator, 20, rounds, noise)) for _ in configs]
        lost += judge(DEFAULT, configs, outcomes).beat_default
    assert lost < 10


@settings(max_examples=50)
@given(st.lists(st.floats(1, 1000), min_size=4, max_size=4), st.floats(1, 1000))
def test_whoever_is_recorded_was_no_slower_than_the_default(times: list[float], default_us: float) -> None:
    outcomes = [measured([time] * 15) for time in (default_us, *times)]
    verdict = judge(DEFAULT, (DEFAULT, *OTHERS), outcomes)
    assert verdict.measurement is not None
    assert verdict.measurement.timing.median_us <= round(default_us, 3)  # records keep nanoseconds
    assert verdict.beat_default == (verdict.config != DEFAULT)
    assert verdict.beat_default == (min(times) <= default_us * 0.995)


def test_steady_gains_beat_the_default_through_noise_that_both_share() -> None:
    """Rounds are paired: a clock that drifts by 30 % hides nothing."""
    drift = [20 * (1 + 0.3 * random.Random(number).random()) for number in range(20)]
    assert beats(measured([time * 0.98 for time in drift]), measured(drift))


def test_a_wrong_finalist_drops_out() -> None:
    wrong = TrialFailure(FailureKind.WRONG, "off by one", 0.1)
    outcomes: list[Outcome] = [measured([20.0] * 15), wrong, measured([15.0] * 15)]
    verdict = judge(DEFAULT, (DEFAULT, *OTHERS[:2]), outcomes)
    assert verdict.config == OTHERS[1]
    verdict = judge(DEFAULT, (DEFAULT, *OTHERS[:2]), [measured([20.0] * 15), wrong, wrong])
    assert (verdict.config, verdict.beat_default) == (DEFAULT, False)


def test_a_default_that_fails_leaves_the_fastest_and_no_gain_is_claimed() -> None:
    failed = TrialFailure(FailureKind.WRONG, "NaN", 0.1)
    verdict = judge(DEFAULT, (DEFAULT, *OTHERS[:2]), [failed, measured([16.0] * 15), measured([15.0] * 15)])
    assert verdict.config == OTHERS[1]
    assert verdict.measurement is not None
    assert verdict.measurement.default.timing == verdict.measurement.timing
    assert not verdict.beat_default


def test_nothing_is_recorded_where_everything_fails() -> None:
    failed = TrialFailure(FailureKind.CRASH, "signal 11", 0.1)
    verdict = judge(DEFAULT, (DEFAULT, OTHERS[0]), [failed, failed])
    assert verdict.measurement is None
    assert "all 2 finalists failed" in verdict.reason and "crash: signal 11" in verdict.reason


def test_the_best_without_prefetch_is_kept_beside_the_winner() -> None:
    deep = replace(DEFAULT, prefetch_depth=2)
    outcomes = [measured([20.0] * 15), measured([10.0] * 15), measured([11.0] * 15)]
    verdict = judge(DEFAULT, (DEFAULT, deep, OTHERS[0]), outcomes)
    assert verdict.config == deep and verdict.measurement is not None
    assert verdict.measurement.best_depth0.config == OTHERS[0]
    assert verdict.measurement.best_depth0.timing.median_us == 11.0
    assert verdict.measurement.default.timing.median_us == 20.0


def at_fills(*medians_us: float, rounds: int = 21) -> TrialResult:
    """Steady times that differ between fill levels."""
    result = measured([1.0] * rounds)
    fills = tuple(replace(fill, median_us=time) for fill, time in zip(result.fills, medians_us, strict=True))
    return TrialResult(fills, tuple((time,) * rounds for time in medians_us), 0.25)


def test_a_tenth_less_at_any_fill_level_counts_alike() -> None:
    assert at_fills(2.0, 4.0, 8.0).objective_us == pytest.approx(4.0)
    assert at_fills(90.0, 500.0, 1000.0).objective_us == pytest.approx(at_fills(100.0, 500.0, 900.0).objective_us)
    assert at_fills(0.1, 0.1, 0.1).objective_us == 0.1


def test_a_third_of_a_short_stretch_is_not_given_for_a_twentieth_of_a_long_one() -> None:
    """As the arithmetic mean would have it."""
    greedy, default = at_fills(40.0, 200.0, 380.0), at_fills(30.0, 200.0, 400.0)
    assert sum(fill.median_us for fill in greedy.fills) < sum(fill.median_us for fill in default.fills) * 0.995
    assert not beats(greedy, default)
    assert beats(default, greedy)


def test_percentiles_are_of_the_objective_too() -> None:
    timing = timing_of(at_fills(2.0, 4.0, 8.0))
    assert (timing.p20_us, timing.median_us, timing.p80_us) == pytest.approx((4.0, 4.0, 4.0))


def test_percentiles_and_shares() -> None:
    assert percentile((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 0.2) == pytest.approx(2.0)
    assert percentile((7.0,), 0.8) == 7.0
    result = measured([10.0] * 5)
    assert ceiling_share(result) == 0.5
    assert gb_per_s(result) == pytest.approx(sum(fill.kv_bytes for fill in result.fills) / 30e-6 / 1e9)
    timing = timing_of(measured([10.0, 11.0, 12.0, 13.0, 14.0]))
    assert timing.p20_us < timing.median_us == 12.0 < timing.p80_us
