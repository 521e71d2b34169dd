"""The end of a study: the best few, the default and the best without prefetch, measured again and interleaved; who is
recorded is decided here (the rule is in ``acceptance``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ..config import KernelConfig
from ..database.record import FillTiming, Measurement, Rival, Timing
from .acceptance import MIN_GAIN, beats, timing_of
from .protocol import Measurer, Outcome, TrialFailure, TrialResult
from .study import KeyStudy

# Beside the default and the best without prefetch.
FINALISTS = 4
# Trials draw their inputs from the job's seed; finals from one that no trial has seen.
HELD_OUT_SEED_OFFSET = 10_000
# Decimals of what is recorded: nanoseconds, and tenths of a percent.
_DIGITS = 3

T = TypeVar("T", Timing, FillTiming)


@dataclass(frozen=True)
class Verdict:
    """Who is recorded. ``measurement`` is None when nobody can be, and ``reason`` says why, or who won."""

    config: KernelConfig
    measurement: Measurement | None
    beat_default: bool
    reason: str


def finalists(study: KeyStudy, count: int = FINALISTS) -> tuple[KernelConfig, ...]:
    """The default first, then the best without prefetch, then the best few: each once."""
    depth0 = study.best_depth0()
    chosen = [study.default]
    for config in [*([depth0.config] if depth0 else []), *(trial.config for trial in study.ranked()[:count])]:
        if config not in chosen:
            chosen.append(config)
    return tuple(chosen)


def decide(
    study: KeyStudy, measurer: Measurer, seed: int, count: int = FINALISTS, min_gain: float = MIN_GAIN
) -> Verdict:
    """Measure the finalists and choose. One that is wrong on the held-out seeds, or fails, drops out."""
    configs = finalists(study, count)
    outcomes = measurer.finals(study.key, configs, seed + HELD_OUT_SEED_OFFSET)
    return judge(study.default, configs, outcomes, min_gain)


def judge(
    default: KernelConfig, configs: Sequence[KernelConfig], outcomes: Sequence[Outcome], min_gain: float = MIN_GAIN
) -> Verdict:
    """The verdict on finals that were measured."""
    results = {c: o for c, o in zip(configs, outcomes, strict=True) if isinstance(o, TrialResult)}
    if not results:
        failures = [outcome for outcome in outcomes if isinstance(outcome, TrialFailure)]
        first = f"{failures[0].kind.value}: {failures[0].detail}" if failures else "none was measured"
        return Verdict(default, None, False, f"all {len(configs)} finalists failed; the default: {first}")
    bare = [config for config in results if not config.prefetches]
    if not bare:
        return Verdict(default, None, False, "no finalist without prefetch ran, so there is nothing to compare with")
    winner, beat, reason = _winner(default, results, min_gain)
    # A default that fails cannot be compared with: the record then claims no gain over it.
    measurement = _measurement(results, winner, default if default in results else winner, bare)
    return Verdict(winner, measurement, beat, reason)


def _winner(
    default: KernelConfig, results: dict[KernelConfig, TrialResult], min_gain: float
) -> tuple[KernelConfig, bool, str]:
    fastest_first = sorted(results, key=lambda config: results[config].objective_us)
    if default not in results:
        return fastest_first[0], False, "the default failed in the finals; the fastest correct configuration is kept"
    challengers = [config for config in fastest_first if config != default]
    for config in challengers:
        if beats(results[config], results[default], len(challengers), min_gain):
            return config, True, "beats the default by more than the noise"
    return default, False, "nothing beats the default by more than the noise"


def _measurement(
    results: dict[KernelConfig, TrialResult], winner: KernelConfig, default: KernelConfig, bare: list[KernelConfig]
) -> Measurement:
    best = results[winner]
    depth0 = min(bare, key=lambda config: results[config].objective_us)
    return Measurement(
        timing=_rounded(timing_of(best)),
        default=Rival(default, _rounded(timing_of(results[default]))),
        best_depth0=Rival(depth0, _rounded(timing_of(results[depth0]))),
        fills=tuple(_rounded(fill) for fill in sorted(best.fills, key=lambda fill: fill.held)),
        ceiling_share=round(ceiling_share(best), _DIGITS),
        error=round(best.error, _DIGITS),
    )


def _rounded(timing: T) -> T:
    """Times as they are recorded: a nanosecond is finer than any clock here, and files stay readable."""
    times = {name: round(value, _DIGITS) for name, value in vars(timing).items() if name.endswith("_us")}
    return replace(timing, **times)


def ceiling_share(result: TrialResult) -> float:
    """Time of the read-only kernel over the time taken, over all fill levels; 0 where the ceiling was not measured."""
    ceiling = sum(fill.ceiling_us for fill in result.fills)
    if any(fill.ceiling_us <= 0 for fill in result.fills):
        return 0.0
    return ceiling / sum(fill.median_us for fill in result.fills)


def gb_per_s(result: TrialResult) -> float:
    """KV bytes that must be read over the time taken, over all fill levels."""
    total_us = sum(fill.median_us for fill in result.fills)
    return sum(fill.kv_bytes for fill in result.fills) / total_us / 1000 if total_us else 0.0
