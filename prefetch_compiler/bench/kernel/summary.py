"""Geometric means over a run: by kind of heads, head_dim, how full caches are, layout, and over all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .result import SHIPPED, CaseResult, KernelRun

_AXES: tuple[tuple[str, Callable[[CaseResult], str]], ...] = (
    ("heads", lambda result: result.case.heads_kind),
    ("head_dim", lambda result: str(result.case.head_dim)),
    ("cache", lambda result: result.case.fill.value),
    ("layout", lambda result: result.case.layout.value),
)


@dataclass(frozen=True)
class GroupSummary:
    """Geometric means over ``cases`` cases, of which ``compared`` have a peer that is right. ``worst`` is the smallest
    ratio to the best peer, and ``worst_case`` where. None where there is nothing to average."""

    group: str
    cases: int
    compared: int
    ceiling_share: float | None
    faster: float | None
    best_of_ours_faster: float | None
    worst: float | None
    worst_case: str


def geomean(values: Sequence[float]) -> float | None:
    return math.exp(math.fsum(math.log(value) for value in values) / len(values)) if values else None


def summaries(run: KernelRun, name: str = SHIPPED) -> list[GroupSummary]:
    """One for each value of each axis that differs within the run, and one for all cases that rank ``name``."""
    ranked = [case for case in run.cases if case.time_us(name) is not None]
    found = []
    for axis, value_of in _AXES:
        values = list(dict.fromkeys(value_of(case) for case in ranked))
        if len(values) > 1:
            found += [
                _summary(f"{axis}: {value}", [case for case in ranked if value_of(case) == value], name)
                for value in values
            ]
    return [*found, _summary("all", ranked, name)] if ranked else []


def _summary(group: str, cases: Sequence[CaseResult], name: str) -> GroupSummary:
    ratios = {case.case.name: ratio for case in cases if (ratio := case.faster_than_best_peer(name)) is not None}
    best = [
        ratio
        for case in cases
        if (ours := case.best_of_ours) is not None and (ratio := case.faster_than_best_peer(ours.name)) is not None
    ]
    worst_case = min(ratios, key=lambda one: ratios[one]) if ratios else ""
    return GroupSummary(
        group=group,
        cases=len(cases),
        compared=len(ratios),
        ceiling_share=geomean([share for case in cases if (share := case.ceiling_share(name)) is not None]),
        faster=geomean(list(ratios.values())),
        best_of_ours_faster=geomean(best),
        worst=ratios.get(worst_case),
        worst_case=worst_case,
    )
