"""Arithmetic on samples: percentiles over fill levels, and whether one configuration beats another by more than noise.

The rule of acceptance. Finalists and the default are timed in interleaved rounds, so the i-th samples of two
configurations were taken under the same conditions. A configuration beats the default if

1. its objective is at least 0.5 % smaller (``MIN_GAIN``), and
2. it is faster in so many of the rounds that, were the two equally fast, luck would do it with a probability of at most
   1 % (one-sided sign test; with k finalists 1 % / k for each, since the best of k lucky ones is taken).

A sign test asks nothing of the noise's distribution. With too few rounds (fewer than 7 for one finalist) nothing can
beat the default.
"""

from __future__ import annotations

import math

from ..database.record import Timing
from .protocol import TrialResult, objective_us

MIN_GAIN = 0.005
MAX_LUCK = 0.01


def percentile(samples: tuple[float, ...], share: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def timing_of(result: TrialResult) -> Timing:
    """Geometric means over fill levels of the median and the percentiles. The median is the objective itself."""
    median = result.objective_us
    samples = [fill for fill in result.samples_us if fill]
    if not samples:
        return Timing(median, median, median)
    low, high = (objective_us([percentile(fill, share) for fill in samples]) for share in (0.2, 0.8))
    return Timing(median, min(low, median), max(high, median))


def rounds_us(result: TrialResult) -> list[float]:
    """The objective of each round: of the i-th samples of the fill levels."""
    return [objective_us(samples) for samples in zip(*result.samples_us, strict=False)]


def luck(faster: int, rounds: int) -> float:
    """The probability of being faster in at least that many of ``rounds`` rounds by chance alone."""
    tail = sum(math.comb(rounds, count) for count in range(faster, rounds + 1))
    return tail / float(2**rounds)


def beats(challenger: TrialResult, default: TrialResult, finalists: int = 1, min_gain: float = MIN_GAIN) -> bool:
    """Whether ``challenger`` may replace ``default`` (see the module's text)."""
    if challenger.objective_us > default.objective_us * (1 - min_gain):
        return False
    pairs = list(zip(rounds_us(challenger), rounds_us(default), strict=False))
    decided = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    if not decided:
        return False
    faster = sum(ours < theirs for ours, theirs in decided)
    return luck(faster, len(decided)) <= MAX_LUCK / max(1, finalists)
