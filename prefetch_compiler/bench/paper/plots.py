"""A run as pictures, drawn from what a file holds. Colours are Okabe and Ito's, for colour-blind eyes too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...demo.errors import MissingExtraError
from ..plot_file import save_png
from .models import MODELS, PAPER_BATCH, PAPER_CONTEXT
from .result import CaseResult, PaperRun
from .settings import GOAL
from .summary import Gain, gain_over, geomean
from .variant import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN, _RED, _SKY, _GREY, _PURPLE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#8a8a8a", "#CC79A7",
)  # fmt: skip
# Colour and line of each kernel that is followed over contexts.
_LINES: dict[Column, dict[str, Any]] = {
    Column.OURS_FREE: {"color": _BLUE, "marker": "o", "linewidth": 2.2},
    Column.OURS_DEPTH0: {"color": _SKY, "marker": "o", "linestyle": "--", "markersize": 3.5},
    Column.CUDNN: {"color": _GREEN, "marker": "s", "markersize": 4.5},
    Column.NEXT_1: {"color": _RED, "marker": "^", "markersize": 4.5},
    Column.NEXT_2: {"color": _RED, "marker": "^", "linestyle": "--", "markersize": 3.5},
    Column.NEXT_4: {"color": _RED, "marker": "^", "linestyle": ":", "markersize": 3.5},
    Column.CONTROL: {"color": _ORANGE, "marker": "D", "markersize": 4},
    Column.OFF: {"color": _ORANGE, "marker": "D", "linestyle": ":", "markersize": 3},
    Column.NONE: {"color": _GREY, "marker": "x", "markersize": 5},
}
_STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "figure.facecolor": "white",
}
_DPI = 150


def require_matplotlib() -> None:
    """Raises: MissingExtraError: matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("plot", ["matplotlib"])


def draw(run: PaperRun, folder: Path) -> list[Path]:
    """Draw every picture that the run has data for; the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[PaperRun], Figure | None]] = {
        "paper-gains": gains_figure,
        "paper-bandwidth": bandwidth_figure,
        "paper-speedup": speedup_figure,
    }
    drawn = []
    with matplotlib.rc_context(_STYLE):
        for name, make in pictures.items():
            figure = make(run)
            if figure is not None:
                drawn.append(save_png(figure, folder / f"{name}.png", _DPI, bbox_inches="tight"))
    return drawn


def gains_figure(run: PaperRun) -> Figure | None:
    """Gains in the paper's setting: the paper's own, prefetching here, and the control here; one panel a batch."""
    batches = [batch for batch in sorted({case.paper_case.batch for case in run.cases}) if _at(run, batch)]
    if not batches:
        return None
    figure, panels = _panels(1, len(batches), 5.2, 3.6, share_y="all")
    for axes, batch in zip(panels[0], batches, strict=True):
        _draw_gains(axes, batch, [_gain(case) for case in _at(run, batch)])
    panels[0][0].set_ylabel("time without prefetch / time with")
    fullest = max((_legend(axes) for axes in panels[0]), key=len)
    figure.legend(*zip(*fullest, strict=True), loc="outside lower center", ncols=4)
    _title(figure, run, f"What prefetching the next KV tile gains, context {PAPER_CONTEXT}")
    return figure


def _at(run: PaperRun, batch: int) -> list[CaseResult]:
    """The cases of a batch at the paper's context."""
    return [
        case
        for case in run.cases
        if (case.paper_case.batch, case.paper_case.context) == (batch, PAPER_CONTEXT)
        and case.ratio(Column.NONE, case.best_prefetch()) is not None
    ]


def _gain(case: CaseResult) -> Gain:
    return gain_over([case], case.paper_case.model.name, case.paper_case.batch)


def _draw_gains(axes: Axes, batch: int, gains: Sequence[Gain]) -> None:
    papers = {model.name: model.gain for model in MODELS} if batch == PAPER_BATCH else {}
    bars: list[tuple[str, str, list[float | None]]] = [
        ("the paper, H20", _PURPLE, [papers.get(gain.model) for gain in gains]),
        ("prefetch, best depth", _RED, [gain.best for gain in gains]),
        ("control", _ORANGE, [gain.control for gain in gains]),
        ("same binary, switched off", _GREY, [gain.off for gain in gains]),
    ]
    shown = [bar for bar in bars if any(value is not None for value in bar[2])]
    width = 0.8 / len(shown)
    for number, (label, colour, values) in enumerate(shown):
        places = [place + (number - (len(shown) - 1) / 2) * width for place in range(len(gains))]
        heights = [value or 0.0 for value in values]
        drawn = axes.bar(places, heights, width * 0.92, color=colour, label=label)
        axes.bar_label(
            drawn,
            [f"{value:.2f}" if value else "" for value in values],
            fontsize=5.8 if len(shown) > 3 else 7,
            padding=1,
        )
    axes.axhline(1.0, color="black", linewidth=0.9, zorder=0.9)
    axes.set_xticks(range(len(gains)), [gain.model for gain in gains], fontsize=8.5)
    axes.set_title(f"batch {batch}")


def bandwidth_figure(run: PaperRun) -> Figure | None:
    """KV bytes over time, against the context: one row a batch, one column a model."""
    models = [model for model in MODELS if any(case.paper_case.model == model for case in run.cases)]
    batches = sorted({case.paper_case.batch for case in run.cases})
    if not models:
        return None
    figure, panels = _panels(len(batches), len(models), 3.3, 2.5, share_y="row")
    for row, batch in zip(panels, batches, strict=True):
        for axes, model in zip(row, models, strict=True):
            own = [case for case in run.cases if (case.paper_case.model, case.paper_case.batch) == (model, batch)]
            _draw_bandwidth(axes, sorted(own, key=lambda case: case.paper_case.context))
            axes.set_title(f"{model.name}, batch {batch}")
        row[0].set_ylabel("KV bytes / time, TB/s")
    for axes in panels[-1]:
        axes.set_xlabel("context, keys")
    found = {label: handle for row in panels for axes in row for handle, label in _legend(axes)}
    handles = {column.value: found[column.value] for column in Column if column.value in found}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    _title(figure, run, "Decode attention: how fast each kernel gets through K and V (higher is better)")
    return figure


def _legend(axes: Axes) -> list[tuple[Any, str]]:
    handles, labels = axes.get_legend_handles_labels()
    return list(zip(handles, [str(label) for label in labels], strict=True))


def _draw_bandwidth(axes: Axes, cases: Sequence[CaseResult]) -> None:
    from matplotlib.ticker import LogLocator

    for column, line in reversed(_LINES.items()):
        points = [(case.paper_case.context, case.kv_bytes / us * 1e-6) for case in cases if (us := case.us(column))]
        if points:
            axes.plot(*zip(*points, strict=True), label=column.value, **line)
    contexts = [case.paper_case.context for case in cases]
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [str(context) for context in contexts], fontsize=8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def speedup_figure(run: PaperRun) -> Figure | None:
    """Ours over the paper's kernel at its best prefetch depth, case by case, with the goal."""
    ratios = [
        (case, ratio) for case in run.cases if (ratio := case.ratio(case.best_prefetch(), Column.OURS_FREE)) is not None
    ]
    if not ratios:
        return None
    ratios.sort(key=lambda pair: _order(pair[0]))
    figure, panels = _panels(1, 1, max(6.0, 0.24 * len(ratios) + 2.5), 3.8)
    axes = panels[0][0]
    # A gap stands between models.
    places = [number + _order(case)[0] for number, (case, _) in enumerate(ratios)]
    for model, colour in zip(MODELS, (_BLUE, _GREEN, _ORANGE, _PURPLE), strict=True):
        own = [place for place, (case, _) in zip(places, ratios, strict=True) if case.paper_case.model == model]
        heights = [ratio for case, ratio in ratios if case.paper_case.model == model]
        if own:
            axes.bar(own, heights, color=colour, width=0.8, label=model.name)
    mean = geomean(ratio for _, ratio in ratios)
    axes.axhline(GOAL, color=_RED, linewidth=1.3, linestyle="--", label=f"goal, {GOAL:g}×")
    axes.axhline(mean or 0, color="black", linewidth=1.1, label=f"geomean, {mean:.2f}×")
    labels = [f"{case.paper_case.batch} × {case.paper_case.context}" for case, _ in ratios]
    axes.set_xticks(places, labels, rotation=90, fontsize=7.5)
    axes.set_xlim(places[0] - 0.8, places[-1] + 0.8)
    axes.set_yscale("log", base=2)
    axes.set_ylim(bottom=min(0.9, *(ratio for _, ratio in ratios)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("batch × context")
    axes.set_ylabel("times faster")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    _title(figure, run, "Our tuned kernel over the paper's at its best prefetch depth")
    return figure


def _order(case: CaseResult) -> tuple[int, int, int]:
    parsed = case.paper_case
    return MODELS.index(parsed.model), parsed.batch, parsed.context


def _panels(
    rows: int, columns: int, width: float, height: float, share_y: Literal["all", "row", "none"] = "none"
) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
    return figure, [list(row) for row in axes]


def _title(figure: Figure, run: PaperRun, text: str) -> None:
    environment = run.environment
    device, torch, triton = (environment.get(name) or "?" for name in ("device", "torch", "triton"))
    figure.suptitle(f"{text}\n{device}, torch {torch}, Triton {triton}, fp16", fontsize=11)
