"""The best peer's time over ours, case by case, as a heat map: rows are kinds of cases, columns batch and capacity."""

from __future__ import annotations

import math
from typing import Any

from .cases import CacheLayout, Case, Fill
from .plot_style import new_figure, size_label, subtitle
from .result import SHIPPED, CaseResult, KernelRun
from .summary import geomean

# Colours run from this many times slower to as many times faster.
HEAT_SPAN = 1.6
_EMPTY_COLOUR = "#f2f2f2"
# Where the colour is too dark for black text.
_DARK = 0.62

Cells = dict[tuple[str, tuple[int, int]], float]


def ratio_figure(run: KernelRun) -> Any:
    """Of cases in which both ours as shipped and some peer are ranked."""
    compared = [case for case in run.cases if case.faster_than_best_peer(SHIPPED) is not None]
    columns = sorted({_column(case) for case in compared})
    rows = list(dict.fromkeys(_row(case.case) for case in sorted(compared, key=_row_order)))
    cells: Cells = {
        (_row(case.case), _column(case)): ratio
        for case in compared
        if (ratio := case.faster_than_best_peer(SHIPPED)) is not None
    }
    figure, axes = new_figure(max(6.5, 3.4 + 0.8 * len(columns)), 2.0 + 0.36 * len(rows))
    image = _draw_cells(axes, cells, rows, columns)
    labels = [f"{batch} × {size_label(capacity)}" for batch, capacity in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlabel("batch × capacity")
    axes.set_title(f"{_headline(cells)}\n{subtitle(run)}", loc="left", fontsize=11)
    for side in axes.spines.values():
        side.set_visible(False)
    _draw_bar(figure, axes, image)
    return figure


def _headline(cells: Cells) -> str:
    mean = geomean(list(cells.values()))
    return f"Time of the best peer over ours as shipped\nGeometric mean of {len(cells)} cases: {mean:.3f}"


def _draw_cells(axes: Any, cells: Cells, rows: list[str], columns: list[tuple[int, int]]) -> Any:
    values = [[math.log(cells.get((row, column), math.nan)) for column in columns] for row in rows]
    span = math.log(HEAT_SPAN)
    axes.set_facecolor(_EMPTY_COLOUR)
    image = axes.imshow(values, cmap="RdBu", vmin=-span, vmax=span, aspect="auto")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if not math.isnan(value):
                colour = "white" if abs(value) > _DARK * span else "black"
                axes.text(x, y, f"{math.exp(value):.2f}", ha="center", va="center", fontsize=8.5, color=colour)
    return image


def _draw_bar(figure: Any, axes: Any, image: Any) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01, extend="both")
    marks = (1 / HEAT_SPAN, 0.8, 0.9, 1.0, 1.11, 1.25, HEAT_SPAN)
    bar.set_ticks([math.log(mark) for mark in marks], labels=[f"{mark:.2f}" for mark in marks])
    bar.set_label("above 1 ours is faster")


def _column(case: CaseResult) -> tuple[int, int]:
    return case.case.batch, case.case.capacity


def _row(case: Case) -> str:
    words = [f"{case.query_heads}q/{case.kv_heads}kv", f"d{case.head_dim}", case.fill.value, case.layout.value]
    return " ".join([*words, *([] if case.dtype == "bfloat16" else [case.dtype])])


def _row_order(result: CaseResult) -> tuple[object, ...]:
    case = result.case
    fill, layout = list(Fill).index(case.fill), list(CacheLayout).index(case.layout)
    return case.dtype, case.group, case.query_heads, case.head_dim, layout, fill
