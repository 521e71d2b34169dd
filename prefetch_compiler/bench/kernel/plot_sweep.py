"""Time by batch or by length: above, microseconds on logarithmic axes; below, times over the read ceiling's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plot_style import CEILING_COLOUR, colour_of, new_figure, size_label, size_ticks, subtitle, tidy
from .result import BEST_BARE, BEST_PREFETCHING, OUR_FAMILY, SHIPPED, CaseResult, KernelRun

# What lies further above the ceiling is cut off below; above it is there.
MOST_TIMES_CEILING = 6.0
_PEER_STYLE: dict[str, Any] = {"linewidth": 1.3, "marker": "o", "markersize": 2.8, "alpha": 0.9}
_OUR_STYLES: dict[str, dict[str, Any]] = {
    SHIPPED: {"linewidth": 2.2, "linestyle": "-", "zorder": 3},
    BEST_BARE: {"linewidth": 1.3, "linestyle": ":", "zorder": 3},
    BEST_PREFETCHING: {"linewidth": 1.3, "linestyle": "-.", "zorder": 3},
}


@dataclass(frozen=True)
class _Axis:
    """What is swept, and what stays fixed in a panel."""

    by_batch: bool

    def swept(self, result: CaseResult) -> int:
        return result.case.batch if self.by_batch else result.case.capacity

    def fixed(self, result: CaseResult) -> int:
        return result.case.capacity if self.by_batch else result.case.batch

    @property
    def label(self) -> str:
        return "batch" if self.by_batch else "keys of each sequence"

    def title(self, fixed: int) -> str:
        return f"{size_label(fixed)} keys" if self.by_batch else f"batch {fixed}"


def sweep_figure(run: KernelRun, sweep: str) -> Any:
    """A column of two panels for each value of what is fixed."""
    axis = _Axis(by_batch=sweep == "batch")
    panels = sorted({axis.fixed(case) for case in run.cases})
    figure, grid = new_figure(3.2 + 5.0 * len(panels), 7.4, 2, len(panels), squeeze=False, sharex="col")
    for column, fixed in enumerate(panels):
        cases = sorted((case for case in run.cases if axis.fixed(case) == fixed), key=axis.swept)
        _draw_panel(grid[0][column], grid[1][column], run, cases, axis)
        grid[0][column].set_title(axis.title(fixed), fontsize=10)
    _draw_legend(figure, grid[0])
    heads = run.cases[0].case
    title = f"Decode attention, {heads.query_heads} query and {heads.kv_heads} KV heads of {heads.head_dim}"
    figure.suptitle(f"{title}\n{subtitle(run)}", x=0.01, ha="left", fontsize=11)
    return figure


def _draw_legend(figure: Any, panels: Any) -> None:
    """One for all panels, beside them; a line may be missing in some."""
    handles: dict[str, Any] = {}
    for axes in panels:
        lines, labels = axes.get_legend_handles_labels()
        handles.update(zip(labels, lines, strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=9, frameon=False)


def _draw_panel(times: Any, ratios: Any, run: KernelRun, cases: list[CaseResult], axis: _Axis) -> None:
    ceilings = {axis.swept(case): case.ceiling.time_us for case in cases}
    times.plot(list(ceilings), list(ceilings.values()), color=CEILING_COLOUR, linestyle="--", label="read ceiling")
    ratios.axhline(1.0, color=CEILING_COLOUR, linestyle="--")
    for family in run.families:
        best = {axis.swept(case): time for case in cases if (time := best_time(case, family)) is not None}
        _draw_line(times, ratios, best, ceilings, {**_PEER_STYLE, "color": colour_of(family), "label": family})
    for name, style in _OUR_STYLES.items():
        own = {axis.swept(case): time for case in cases if (time := case.time_us(name)) is not None}
        _draw_line(times, ratios, own, ceilings, {**style, "color": colour_of(OUR_FAMILY), "label": name})
    _dress(times, ratios, list(ceilings), axis)


def _draw_line(
    times: Any, ratios: Any, found: dict[int, float], ceilings: dict[int, float], style: dict[str, Any]
) -> None:
    """``found`` maps sizes to microseconds."""
    if found:
        times.plot(list(found), list(found.values()), **style)
        ratios.plot(list(found), [time / ceilings[size] for size, time in found.items()], **style)


def best_time(case: CaseResult, family: str) -> float | None:
    """The shortest median of a member of ``family``."""
    times = [peer.ranked_us for peer in case.peers if peer.family == family]
    return min((time for time in times if time is not None), default=None)


def _dress(times: Any, ratios: Any, sizes: list[int], axis: _Axis) -> None:
    size_ticks(ratios, sizes)
    times.set_yscale("log")
    times.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    times.set_ylabel("µs")
    low, high = ratios.get_ylim()
    ratios.set_ylim(min(0.9, low), min(high, MOST_TIMES_CEILING))
    ratios.set_ylabel("times the read ceiling's")
    ratios.set_xlabel(axis.label)
    tidy(times)
    tidy(ratios)
