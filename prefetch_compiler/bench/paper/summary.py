"""What a run comes to: gains of prefetching and of its control, and our kernel beside the paper's at its best depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .models import MODELS, PaperModel
from .result import CaseResult, PaperRun
from .settings import GOAL
from .variant import PAPER_STYLE, PREFETCHING, Column


@dataclass(frozen=True)
class Gain:
    """Time without any prefetch over time with, of the paper's kernel: geomeans over the contexts that were measured.

    ``best`` takes the best depth of each context, ``depths`` one depth throughout; ``off`` is the binary with
    prefetches of which none is issued, and ``over_off`` what the best depth gains over that: over the same code.
    """

    model: str
    batch: int
    contexts: int
    best: float | None
    control: float | None
    off: float | None
    over_off: float | None
    depths: dict[str, float | None]


@dataclass(frozen=True)
class Summary:
    """
    Attributes:
        gains: one for each model and batch.
        over_best_prefetch: the paper's kernel at its best prefetch depth over ours (any depth), geomean over cases.
        over_best_prefetch_depth0: the same for ours without prefetch.
        over_fastest: the same with the fastest of all its variants, those without prefetch too, for ours (any depth).
        cudnn_over_ours: SDPA by cuDNN over ours (any depth), geomean over cases.
        cases: how many cases the geomean of ``over_best_prefetch`` is over.
    """

    gains: tuple[Gain, ...]
    over_best_prefetch: float | None
    over_best_prefetch_depth0: float | None
    over_fastest: float | None
    cudnn_over_ours: float | None
    cases: int
    goal: float = GOAL

    @property
    def goal_met(self) -> bool:
        return self.over_best_prefetch is not None and self.over_best_prefetch >= self.goal

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "goal_met": self.goal_met}


def geomean(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None of none."""
    logs = [math.log(value) for value in values if value is not None]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def summarize(run: PaperRun) -> Summary:
    """The summary of whatever was measured."""
    over_best = [case.ratio(case.best_prefetch(), Column.OURS_FREE) for case in run.cases]
    return Summary(
        gains=tuple(_gains(run.cases)),
        over_best_prefetch=geomean(over_best),
        over_best_prefetch_depth0=geomean(case.ratio(case.best_prefetch(), Column.OURS_DEPTH0) for case in run.cases),
        over_fastest=geomean(case.ratio(fastest_paper_style(case), Column.OURS_FREE) for case in run.cases),
        cudnn_over_ours=geomean(case.ratio(Column.CUDNN, Column.OURS_FREE) for case in run.cases),
        cases=sum(value is not None for value in over_best),
    )


def fastest_paper_style(case: CaseResult) -> Column | None:
    """The fastest variant of the paper's kernel, whatever it asks L2 for."""
    timed = {column: us for column in PAPER_STYLE if (us := case.us(column)) is not None}
    return min(timed, key=timed.__getitem__, default=None)


def _gains(cases: list[CaseResult]) -> Iterable[Gain]:
    groups: dict[tuple[PaperModel, int], list[CaseResult]] = {}
    for case in cases:
        groups.setdefault((case.paper_case.model, case.paper_case.batch), []).append(case)
    for (model, batch), own in sorted(groups.items(), key=lambda item: (MODELS.index(item[0][0]), item[0][1])):
        yield gain_over(own, model.name, batch)


def gain_over(cases: list[CaseResult], model: str, batch: int) -> Gain:
    """The gains over some cases of one model and batch."""

    def over(column_of: Callable[[CaseResult], Column | None]) -> float | None:
        return geomean(case.ratio(Column.NONE, column_of(case)) for case in cases)

    return Gain(
        model,
        batch,
        len(cases),
        best=over(CaseResult.best_prefetch),
        control=over(lambda _: Column.CONTROL),
        off=over(lambda _: Column.OFF),
        over_off=geomean(case.ratio(Column.OFF, case.best_prefetch()) for case in cases),
        depths={
            column.value: over(lambda _, column=column: column)  # type: ignore[misc]
            for column in PREFETCHING
        },
    )
