"""Case: one decode-step shape, and its spelling ``BATCHxCAPACITYxHELD`` on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from ..errors import InvalidOptionError


@dataclass(frozen=True, order=True)
class Case:
    """One decode step: ``batch`` sequences, caches of ``capacity`` keys each, of which ``held`` are valid."""

    batch: int
    capacity: int
    held: int

    def __post_init__(self) -> None:
        if self.batch < 1 or not 1 <= self.held < self.capacity:
            raise InvalidOptionError("cases", str(self), "batch >= 1 and 1 <= held < capacity")

    def __str__(self) -> str:
        return f"{self.batch}x{self.capacity}x{self.held}"

    @staticmethod
    def parse(text: str) -> Case:
        """``"16x4096x1000"``: batch 16, capacity 4096, 1000 keys held.

        Raises:
            InvalidOptionError: ``text`` is not such a case.
        """
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.strip())
        if match is None:
            raise InvalidOptionError("cases", text, "BATCHxCAPACITYxHELD, like 16x4096x1000")
        return Case(*(int(size) for size in match.groups()))


# The model with Llama-8B's layer shapes and random weights.
RANDOM_LLAMA = "llama-8b"

# Llama-8B shapes: a short and a nearly full cache at each batch size, and one long cache that is mostly empty.
RANDOM_MODEL_CASES = (
    Case(1, 8192, 1000),
    Case(16, 4096, 1000),
    Case(16, 4096, 4000),
    Case(64, 4096, 1000),
    Case(64, 4096, 4000),
)
REAL_MODEL_CASES = (Case(1, 2048, 500), Case(1, 8192, 1000), Case(16, 8192, 1000))


def parse_cases(text: str) -> tuple[Case, ...]:
    """A comma-separated list of cases.

    Raises:
        InvalidOptionError: one of them is malformed.
    """
    return tuple(Case.parse(part) for part in text.split(","))


def by_shape(cases: tuple[Case, ...]) -> list[list[Case]]:
    """Cases grouped by (batch, capacity): a group shares its caches and its compiled steps."""
    ordered = sorted(cases)
    return [list(group) for _, group in groupby(ordered, key=lambda case: (case.batch, case.capacity))]
