"""Settings: everything that one run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .case import PaperCase

# Ours over the paper's kernel with its best prefetch depth, in geomean.
GOAL = 2.0


@dataclass(frozen=True)
class PaperSettings:
    """
    Attributes:
        rounds: interleaved rounds of the measurement proper.
        trials: configurations of ours that a case without a record tries at most; 0 for none.
        budget_s: seconds after which no further case is begun; None for no limit.
        ncu: read hardware counters too, after everything else.
    """

    cases: tuple[PaperCase, ...]
    rounds: int = 15
    trials: int = 12
    seed: int = 0
    budget_s: float | None = None
    ncu: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "cases": [str(case) for case in self.cases], "goal": GOAL}
