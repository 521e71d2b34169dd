"""Read ceilings between the sizes that were measured."""

from __future__ import annotations

import pytest

from prefetch_compiler.tuning.ceilings import LEAST_BYTES, Ceilings


class _Memory:
    """A launch of 2 µs and then 1 MiB/µs; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, byte_count: int) -> float:
        self.asked.append(byte_count)
        return 2 + byte_count / (1 << 20)


def test_between_two_sizes_the_time_is_between_theirs() -> None:
    memory = _Memory()
    assert Ceilings(memory).us(3 << 20) == pytest.approx(5)
    assert sorted(memory.asked) == [2 << 20, 4 << 20]


def test_a_size_is_measured_once() -> None:
    memory = _Memory()
    ceilings = Ceilings(memory)
    assert {ceilings.us(4 << 20) for _ in range(3)} == {6}
    ceilings.us(5 << 20)
    assert memory.asked == [4 << 20, 8 << 20]


def test_beyond_the_largest_size_the_rate_is_the_same() -> None:
    memory = _Memory()
    assert Ceilings(memory, most_bytes=8 << 20).us(24 << 20) == pytest.approx(30)
    assert memory.asked == [8 << 20]


def test_below_the_least_size_a_launch_is_all() -> None:
    memory = _Memory()
    assert Ceilings(memory).us(100) == pytest.approx(2.25)
    assert memory.asked == [LEAST_BYTES]
