"""Plots of a run, drawn from its data alone: share of the read ceiling by bytes, ratios to the best peer as a heat map,
and time by batch or length of a sweep."""

from __future__ import annotations

from pathlib import Path

from .plot_ceiling_share import ceiling_share_figure
from .plot_ratio import ratio_figure
from .plot_style import save
from .plot_sweep import sweep_figure
from .result import SHIPPED, KernelRun


def draw(run: KernelRun, folder: Path) -> list[Path]:
    """Every plot that ``run`` has data for, as PNG; the folder is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    if any(case.time_us(SHIPPED) is not None for case in run.cases):
        paths.append(save(ceiling_share_figure(run), folder, "ceiling-share"))
    if any(case.faster_than_best_peer(SHIPPED) is not None for case in run.cases):
        paths.append(save(ratio_figure(run), folder, "best-peer-ratio"))
    if run.sweep is not None and run.cases:
        paths.append(save(sweep_figure(run, run.sweep), folder, f"sweep-{run.sweep}"))
    return paths
