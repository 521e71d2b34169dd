"""What the search asks of whoever measures, and what it gets back: plain, picklable data.

The search (``study``, ``job``) knows no GPU; the measurer (``measurer``) knows no Optuna. Tests put a table of recorded
times, or a function, in the measurer's place.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ..config import KernelConfig
from ..database.key import TuningKey
from ..database.record import FillTiming

# How full a static cache is, is known on the device only: the objective is the geometric mean of the times at these
# shares of the capacity. At RAGGED_FILL the sequences of a batch differ in length.
STATIC_FILLS = (0.125, 0.5, 1.0)
RAGGED_FILL = 0.5


def fills_of(key: TuningKey) -> tuple[float, ...]:
    """The shares of the capacity that a key is measured at. Without a mask or lengths all of K and V is always read."""
    return STATIC_FILLS if key.bounded else (1.0,)


# What the numbers of a study are: studies of another objective are other studies.
OBJECTIVE = "geometric mean"


def objective_us(times_us: Sequence[float]) -> float:
    """What is to be smallest: the geometric mean of the times at the fill levels.

    A tenth less at any of them counts alike. The arithmetic mean of an eighth, a half and all of a cache is nearly all
    of it the last two: by it a choice that loses a third on a short stretch wins by gaining a twentieth on a long one.
    """
    first = times_us[0]
    # Relative to one of them, so that the mean of equal times is that time exactly.
    return first * math.exp(statistics.fmean(math.log(time_us / first) for time_us in times_us))


@dataclass(frozen=True)
class TrialRequest:
    """Verify ``config`` on inputs drawn from ``seed``, then time it at every fill level."""

    key: TuningKey
    config: KernelConfig
    seed: int


class FailureKind(str, Enum):
    """What a trial died of. Each costs one trial."""

    INADMISSIBLE = "inadmissible"  # by arithmetic, before compiling
    COMPILE_ERROR = "compile_error"
    COMPILE_TIMEOUT = "compile_timeout"
    RESOURCES = "resources"  # shared memory or spills, known from compiling
    OUT_OF_MEMORY = "out_of_memory"
    WRONG = "wrong"  # error beyond the bound, NaN, or a write outside the output
    CRASH = "crash"  # the worker process died; an illegal access ends this way
    HANG = "hang"  # killed at the deadline
    ERROR = "error"  # any other exception in the worker


@dataclass(frozen=True)
class TrialFailure:
    kind: FailureKind
    detail: str
    seconds: float


@dataclass(frozen=True)
class TrialResult:
    """Times at every fill level, with the raw samples behind them in microseconds, one tuple a fill level, and the
    largest error over its bound."""

    fills: tuple[FillTiming, ...]
    samples_us: tuple[tuple[float, ...], ...]
    error: float

    @property
    def objective_us(self) -> float:
        """Geometric mean over fill levels of the median time."""
        return objective_us([fill.median_us for fill in self.fills])


Outcome = TrialResult | TrialFailure


class Measurer(Protocol):
    """One device, measured serially."""

    def trial(self, request: TrialRequest) -> Outcome:
        """Verify and time one configuration. Never raises for what the configuration does."""

    def finals(self, key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> tuple[Outcome, ...]:
        """Verify on held-out seeds and time again, rounds interleaved over ``configs``; one outcome each, in order."""

    def close(self) -> None:
        """Give the device back; no process stays behind."""
