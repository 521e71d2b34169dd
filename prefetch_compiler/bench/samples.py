"""Samples: raw timings of one quantity, with the median and the 20th and 80th percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Samples:
    """Raw samples in microseconds, in the order in which they were taken."""

    samples_us: list[float] = field(default_factory=list)

    def extend(self, samples_us: Sequence[float]) -> None:
        self.samples_us.extend(samples_us)

    def quantile_us(self, fraction: float) -> float:
        return float(np.quantile(self.samples_us, fraction))

    @property
    def median_us(self) -> float:
        return self.quantile_us(0.5)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON: quantiles and every raw sample."""
        if not self.samples_us:
            return {"samples_us": []}
        return {
            "median_us": self.median_us,
            "p20_us": self.quantile_us(0.2),
            "p80_us": self.quantile_us(0.8),
            "samples_us": self.samples_us,
        }
