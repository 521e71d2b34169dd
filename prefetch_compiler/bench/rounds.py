"""Rounds: how often a step is timed, and between which fill levels."""

from __future__ import annotations

from dataclasses import dataclass

# Untimed steps before each timed stretch: they bring the step's code and graph back into caches.
WARM_STEPS = 2


@dataclass(frozen=True)
class Rounds:
    """``rounds`` interleaved rounds, each one burst of ``burst_steps`` and ``synchronous_steps`` others."""

    rounds: int = 15
    burst_steps: int = 20
    synchronous_steps: int = 5

    def first_length(self, held: int) -> int:
        """The fill level to start a burst from, so that its mean over the burst is ``held``."""
        return max(1, held - self.burst_steps // 2)

    def last_length(self, held: int) -> int:
        """The longest the cache gets."""
        return self.first_length(held) + max(self.burst_steps, WARM_STEPS, self.synchronous_steps)
