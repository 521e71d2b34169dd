"""The outcome of a run as data: what a file holds, and what tables and plots are made from. Times are microseconds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ..samples import Samples
from .case import PaperCase
from .errors import InvalidRunFileError
from .variant import PREFETCHING, Column


@dataclass
class ColumnResult:
    """One kernel in one case.

    Attributes:
        detail: which configuration it is, and where that came from.
        error: the largest error against float64 over its bound, at most 1.
        failure: why there are no samples, where there are none.
    """

    column: Column
    detail: str = ""
    error: float | None = None
    samples_us: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def samples(self) -> Samples:
        return Samples(self.samples_us)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "column": self.column.value, **self.samples.to_dict()}


@dataclass
class CaseResult:
    """One case, named as :meth:`PaperCase.parse` reads it.

    Attributes:
        kv_bytes: of K and V, each read once.
        caches: distinct caches that a graph goes through.
        warps: of the paper's kernel, in every variant.
        probes: for each number of warps that was tried, each variant's time; ``warps`` is where the fastest was.
    """

    case: str
    kv_bytes: int
    caches: int
    warps: int
    probes: dict[str, dict[Column, float]] = field(default_factory=dict)
    columns: list[ColumnResult] = field(default_factory=list)

    @property
    def paper_case(self) -> PaperCase:
        return PaperCase.parse(self.case)

    def find(self, column: Column) -> ColumnResult | None:
        return next((result for result in self.columns if result.column is column), None)

    def us(self, column: Column) -> float | None:
        """Median time of a column; None if it has none."""
        found = self.find(column)
        return None if found is None or not found.samples_us else found.samples.median_us

    def best_prefetch(self) -> Column | None:
        """The fastest of those that prefetch the next tile."""
        timed = {column: us for column in PREFETCHING if (us := self.us(column)) is not None}
        return min(timed, key=timed.__getitem__, default=None)

    def ratio(self, slower: Column | None, faster: Column | None) -> float | None:
        """How many times as long the first takes as the second; None where either has no time."""
        if slower is None or faster is None:
            return None
        first, second = self.us(slower), self.us(faster)
        return None if first is None or second is None else first / second

    def to_dict(self) -> dict[str, Any]:
        probes = {warps: {column.value: us for column, us in times.items()} for warps, times in self.probes.items()}
        return {**vars(self), "probes": probes, "columns": [column.to_dict() for column in self.columns]}


@dataclass
class LeftOut:
    """A case that was not measured, and why; ``failed`` when it should have been."""

    case: str
    reason: str
    failed: bool = False


@dataclass
class CounterRow:
    """Hardware counters of one launch of the paper's kernel: metric name to value; ``column`` is the variant."""

    case: str
    column: Column
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "column": self.column.value}


@dataclass
class Counters:
    """What Nsight Compute said; ``failure`` is why it said nothing."""

    rows: list[CounterRow] = field(default_factory=list)
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [row.to_dict() for row in self.rows], "failure": self.failure}


@dataclass
class PaperRun:
    """A whole run."""

    settings: dict[str, Any]
    environment: dict[str, str | None]
    cases: list[CaseResult] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    counters: Counters | None = None

    @property
    def problems(self) -> list[str]:
        """One line for each kernel of ours that failed, the rebuilt one included, and each case that did. Peers are not
        judged."""
        kernels = [
            f"{case.case}: {result.column.value}: {result.failure}"
            for case in self.cases
            for result in case.columns
            if result.failure is not None and result.column is not Column.CUDNN
        ]
        return kernels + [f"{left.case}: {left.reason}" for left in self.left_out if left.failed]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, raw samples included."""
        return {
            "settings": self.settings,
            "environment": self.environment,
            "cases": [case.to_dict() for case in self.cases],
            "left_out": [vars(left) for left in self.left_out],
            "counters": None if self.counters is None else self.counters.to_dict(),
        }


def write_run(run: PaperRun, path: Path) -> None:
    path.write_text(json.dumps(run.to_dict(), indent=1))


def read_run(path: Path) -> PaperRun:
    """The run that a file holds.

    Raises:
        InvalidRunFileError: it cannot be read, or holds something else.
    """
    try:
        run = msgspec.json.decode(path.read_bytes(), type=PaperRun)
        for case in run.cases:
            PaperCase.parse(case.case)
    except (OSError, ValueError) as error:
        raise InvalidRunFileError(path, str(error)) from error
    return run
