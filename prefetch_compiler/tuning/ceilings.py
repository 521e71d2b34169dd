"""Read ceilings by number of bytes: measured at powers of two where they are needed, interpolated between."""

from __future__ import annotations

import math
from collections.abc import Callable

# Below this, reading takes what a launch takes.
LEAST_BYTES = 1 << 18


class Ceilings:
    """Args:
    measure: microseconds that the fastest read-only kernel takes for a number of bytes.
    most_bytes: the largest region worth measuring; beyond it the rate no longer changes.
    """

    def __init__(self, measure: Callable[[int], float], most_bytes: int = 2 << 30) -> None:
        self._measure = measure
        self._most_bytes = most_bytes
        self._measured: dict[int, float] = {}

    def us(self, byte_count: int) -> float:
        """Microseconds in which ``byte_count`` bytes can be read; linear between the powers of two on either side."""
        if byte_count >= self._most_bytes:
            return self._at(self._most_bytes) * byte_count / self._most_bytes
        if byte_count <= LEAST_BYTES:
            return self._at(LEAST_BYTES)
        below = 1 << (byte_count.bit_length() - 1)
        if below == byte_count:
            return self._at(byte_count)
        share = (byte_count - below) / below
        return math.fsum(((1 - share) * self._at(below), share * self._at(2 * below)))

    def _at(self, byte_count: int) -> float:
        if byte_count not in self._measured:
            self._measured[byte_count] = self._measure(byte_count)
        return self._measured[byte_count]
