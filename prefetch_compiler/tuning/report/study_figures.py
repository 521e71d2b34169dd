"""Figures of studies: what prefetching was worth, and Optuna's own views of how the search went."""

from __future__ import annotations

import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from .study_facts import StudyFacts
from .theme import COLOURS, DEPTH_COLOURS, layout, microseconds, text

_TARGET = "time (µs)"
# Views of single studies get slow and illegible with more parameters than these.
_MOST_SLICES, _MOST_CONTOURS, _MOST_TICKS = 12, 3, 10
# Figures show times up to so many times the best: slower trials would press the rest into a line.
_MOST_SLOWER = 2.5
# Of all studies together, the same of the best at each depth.
_HIGHEST_RATIO = 1.6


@dataclass(frozen=True)
class View:
    """Figures with their heading and one line on how to read them; several are panels side by side. ``on_paper``: their
    colours are made for a light background, whatever the page's is."""

    title: str
    caption: str
    figures: tuple[go.Figure, ...]
    on_paper: bool = False


def depth_curves(studies: Sequence[StudyFacts]) -> go.Figure | None:
    """Time against prefetch depth with everything else at its best, relative to each study's best: a line a study, and
    the median over studies. None with fewer than two studies that tried prefetching."""
    curves = [(facts, facts.by_depth()) for facts in studies]
    curves = [(facts, depths) for facts, depths in curves if len(depths) > 1 and facts.best is not None]
    if len(curves) < 2:
        return None
    figure = go.Figure()
    for facts, depths in curves:
        best_us = facts.best.objective_us if facts.best is not None else None
        figure.add_scatter(
            x=list(depths),
            y=[_ratio(trial.objective_us, best_us) for trial in depths.values()],
            mode="lines+markers",
            line={"color": COLOURS[7], "width": 1},
            marker={"size": 4},
            opacity=max(0.15, min(0.7, 12 / len(curves))),
            hovertext=[
                f"<b>{text(facts.title)}</b><br>depth {depth}: {microseconds(trial.objective_us or 0)}"
                f"<br>{trial.config.encode()}"
                for depth, trial in depths.items()
            ],
            hoverinfo="text",
            showlegend=False,
        )
    figure.add_scatter(**_median_curve(curves))
    highest = max(max(trace.y) for trace in figure.data)
    top = 1 + 1.05 * (min(highest, _HIGHEST_RATIO) - 1) + 0.005
    figure.update_layout(
        layout(
            420,
            xaxis={"title": "prefetch depth (tiles ahead)", "dtick": 1, "zeroline": False},
            yaxis={
                "title": "best time at this depth<br>over the best of all",
                "ticksuffix": "×",
                "range": [1 - 0.03 * (top - 1), top],
            },
            legend={"x": 0.01, "y": 0.99, "yanchor": "top"},
        )
    )
    return figure


def _median_curve(curves: Sequence[tuple[StudyFacts, dict[int, Any]]]) -> dict[str, Any]:
    tried = Counter(depth for _, by_depth in curves for depth in by_depth)
    # A median of a few studies beside one of all would be a step that no study has.
    depths = sorted(depth for depth, count in tried.items() if 2 * count >= len(curves))
    ratios = [
        [
            _ratio(by_depth[depth].objective_us, facts.best.objective_us)
            for facts, by_depth in curves
            if depth in by_depth and facts.best is not None
        ]
        for depth in depths
    ]
    return {
        "x": depths,
        "y": [statistics.median(values) for values in ratios],
        "name": f"median of {len(curves)} studies",
        "mode": "lines+markers",
        "line": {"color": COLOURS[2], "width": 3},
        "marker": {"size": 9},
        "hovertext": [
            f"depth {depth}: median {statistics.median(values):.3f}× over {len(values)} studies"
            for depth, values in zip(depths, ratios, strict=True)
        ],
        "hoverinfo": "text",
    }


def _ratio(time_us: float | None, best_us: float | None) -> float:
    return (time_us or 0.0) / best_us if best_us else 1.0


def views(facts: StudyFacts) -> Iterator[View]:
    """Everything that can be drawn of one study, ours first. What Optuna cannot draw is left out."""
    depth = _depth_view(facts)
    if depth is not None:
        yield depth
    # Of several objectives none is the time.
    completed = [trial for trial in facts.trials if trial.state is TrialState.COMPLETE and len(trial.values or ()) == 1]
    if not completed:
        return
    names = {name for trial in completed for name in trial.params}
    everywhere = sorted(name for name in names if all(name in trial.params for trial in completed))
    varied = [name for name in everywhere if len({trial.params[name] for trial in completed}) > 1]
    for draw in (_history, _importances, _parallel, _slices, _contours):
        view = _quietly(draw, facts.study, varied, completed)
        if view is not None:
            yield view


_Draw = Callable[[optuna.Study, list[str], list[FrozenTrial]], View | None]


def _quietly(draw: _Draw, study: optuna.Study, varied: list[str], completed: list[FrozenTrial]) -> View | None:
    """A view, or None for a study that Optuna finds too small or too odd for it: it has many ways of saying so."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            view = draw(study, varied, completed)
    except (ValueError, RuntimeError, KeyError, ZeroDivisionError, IndexError):
        return None
    finally:
        optuna.logging.set_verbosity(verbosity)
    return view if view is not None and all(len(figure.data) for figure in view.figures) else None


def _depth_view(facts: StudyFacts) -> View | None:
    """Every measured trial by its depth, and the best of each depth."""
    if not facts.measured:
        return None
    depths, tried = facts.by_depth(), facts.tried_by_depth()
    figure = go.Figure()
    figure.add_scatter(
        x=[trial.config.prefetch_depth for trial in facts.measured],
        y=[trial.objective_us for trial in facts.measured],
        name="every trial",
        mode="markers",
        marker={"color": COLOURS[7], "size": 6, "opacity": 0.5},
        hovertext=[
            f"trial {trial.number}: {microseconds(trial.objective_us or 0)}<br>{trial.config.encode()}"
            f"<br>proposed by: {text(trial.source)}"
            for trial in facts.measured
        ],
        hoverinfo="text",
    )
    figure.add_scatter(
        x=list(depths),
        y=[trial.objective_us for trial in depths.values()],
        name="best at this depth",
        mode="lines+markers",
        line={"color": COLOURS[0], "width": 2.5},
        marker={"size": 11, "color": [DEPTH_COLOURS.get(depth) for depth in depths]},
        hovertext=[
            f"depth {depth}, best of {tried[depth]} trials: {microseconds(trial.objective_us or 0)}"
            f"<br>{trial.config.encode()}"
            for depth, trial in depths.items()
        ],
        hoverinfo="text",
    )
    times_us = sorted(trial.objective_us or 0.0 for trial in facts.measured)
    top = min(times_us[-1], _MOST_SLOWER * times_us[0])
    figure.update_layout(
        layout(
            400,
            xaxis={"title": "prefetch depth (tiles ahead)", "dtick": 1, "zeroline": False},
            yaxis={"title": _TARGET, "range": [times_us[0] * 0.95, top * 1.03]},
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        )
    )
    caption = "The best trial at each depth: everything else as good as the search found it for that depth."
    return View("Time against prefetch depth", caption, (figure,))


def _history(study: optuna.Study, varied: list[str], completed: list[FrozenTrial]) -> View:
    figure = optuna.visualization.plot_optimization_history(study, target_name=_TARGET)
    figure.update_layout(
        layout(
            380,
            yaxis={"title": _TARGET, "range": _time_range(completed)},
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        ),
        title=None,
    )
    return View("Optimisation history", "Times of the trials in order, and the best so far.", (figure,))


def _importances(study: optuna.Study, varied: list[str], completed: list[FrozenTrial]) -> View | None:
    if not varied or len(completed) < 2:
        return None
    figure = optuna.visualization.plot_param_importances(
        study, evaluator=_evaluator(), params=varied, target=lambda trial: trial.value or 0.0, target_name=_TARGET
    )
    figure.update_layout(
        layout(80 + 34 * len(varied), margin={"l": 16, "r": 40, "t": 8, "b": 48}),
        title=None,
        showlegend=False,
    )
    figure.update_traces(marker_color=COLOURS[0], cliponaxis=False)
    figure.update_xaxes(title="share of the variation in time")
    figure.update_yaxes(automargin=True, title=None)
    caption = "How much of the variation in time each parameter explains (fANOVA over the completed trials)."
    return View("Parameter importances", caption, (figure,))


def _evaluator() -> optuna.importance.BaseImportanceEvaluator:
    """fANOVA, which needs scikit-learn, and is repeatable with a seed."""
    return optuna.importance.FanovaImportanceEvaluator(seed=0)


def _parallel(study: optuna.Study, varied: list[str], completed: list[FrozenTrial]) -> View | None:
    if len(varied) < 2:
        return None
    figure = optuna.visualization.plot_parallel_coordinate(study, params=varied, target_name=_TARGET)
    figure.update_layout(layout(480, margin={"l": 64, "r": 64, "t": 48, "b": 48}), title=None)
    # Labels of the trace type that Optuna drew with before version 5 stand above their axes and run into each other.
    figure.update_traces(labelangle=-20, selector={"type": "parcoords"})
    caption = "A line a trial, through its value of each parameter that every trial has; darker lines are faster."
    return View("Parallel coordinates", caption, (figure,), on_paper=True)


def _slices(study: optuna.Study, varied: list[str], completed: list[FrozenTrial]) -> View | None:
    if not varied:
        return None
    panels = []
    for name in varied[:_MOST_SLICES]:
        figure = optuna.visualization.plot_slice(study, params=[name], target_name=_TARGET)
        figure.update_layout(_panel(), title=None, width=None, showlegend=False)
        figure.update_traces(marker_showscale=False)
        figure.update_yaxes(range=_time_range(completed), title={"font": {"size": 12}})
        figure.update_xaxes(title={"font": {"size": 12}})
        _whole_ticks(figure.layout.xaxis, name, completed)
        panels.append(figure)
    caption = "Time against each parameter alone; darker points are later trials."
    return View("Slices", caption, tuple(panels), on_paper=True)


def _contours(study: optuna.Study, varied: list[str], completed: list[FrozenTrial]) -> View | None:
    """Of the parameters that matter most."""
    if len(varied) < 2:
        return None
    importances = optuna.importance.get_param_importances(study, evaluator=_evaluator(), params=varied)
    panels = []
    for pair in combinations(list(importances)[:_MOST_CONTOURS], 2):
        figure = optuna.visualization.plot_contour(study, params=list(pair), target_name=_TARGET)
        figure.update_layout(_panel(), title=None, showlegend=False)
        figure.update_traces(colorbar={"thickness": 10, "title": {"text": "µs"}}, selector={"type": "contour"})
        for axis in (figure.layout.xaxis, figure.layout.yaxis):
            axis.title.font = {"size": 12}
            _whole_ticks(axis, str(axis.title.text), completed)
        panels.append(figure)
    caption = "Time over pairs of the parameters that matter most: darker is faster, dots are trials."
    return View("Contours", caption, tuple(panels), on_paper=True)


def _whole_ticks(axis: Any, name: str, completed: Sequence[FrozenTrial]) -> None:
    """Ticks of a parameter's axis where there are values, if it has a few; at powers of two, if it is logarithmic."""
    values = {trial.params.get(name) for trial in completed} - {None}
    if axis.type == "log":
        axis.tickvals = [1 << power for power in range(20)]
    elif values and len(values) <= _MOST_TICKS and all(type(value) is int for value in values):
        axis.tickvals = sorted(values)


def _panel() -> dict[str, Any]:
    return layout(300, margin={"l": 48, "r": 8, "t": 12, "b": 44})


def _time_range(completed: Sequence[FrozenTrial]) -> list[float]:
    """From below the fastest to where trials are no longer of interest: some are many times slower."""
    values = sorted(trial.value or 0.0 for trial in completed)
    return [values[0] * 0.95, min(values[-1], _MOST_SLOWER * values[0]) * 1.03]
