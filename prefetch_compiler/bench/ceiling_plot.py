"""The read ceiling as a plot: rate, and time of a launch, by bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .ceiling_sweep import CeilingRun
from .kernel.plot_style import CEILING_COLOUR, byte_ticks, new_figure, save, tidy


def draw_ceilings(run: CeilingRun, folder: Path) -> list[Path]:
    """``ceiling.png``; the folder is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return [save(ceiling_figure(run), folder, "ceiling")] if run.points else []


def ceiling_figure(run: CeilingRun) -> Any:
    """Bands are p20 to p80."""
    figure, (rates, times) = new_figure(8.0, 7.0, 2, 1, sharex=True)
    sizes = [point.region_bytes for point in run.points]
    quantiles = {fraction: [point.samples.quantile_us(fraction) for point in run.points] for fraction in (0.2, 0.8)}
    slow, fast = (
        [size / time * 1e-6 for size, time in zip(sizes, quantiles[fraction], strict=True)] for fraction in (0.8, 0.2)
    )
    rates.plot(sizes, [point.tb_per_s for point in run.points], color=CEILING_COLOUR, marker="o", markersize=4)
    rates.fill_between(sizes, slow, fast, color=CEILING_COLOUR, alpha=0.2, linewidth=0)
    rates.set_ylim(bottom=0)
    rates.set_ylabel("TB/s")
    times.plot(sizes, [point.time_us for point in run.points], color=CEILING_COLOUR, marker="o", markersize=4)
    times.fill_between(sizes, quantiles[0.2], quantiles[0.8], color=CEILING_COLOUR, alpha=0.2, linewidth=0)
    times.set_yscale("log")
    times.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    times.set_ylabel("µs")
    byte_ticks(times)
    times.set_xlabel("bytes read by one launch")
    device, torch = run.environment.get("device"), run.environment.get("torch")
    rates.set_title(
        f"How fast a kernel that only reads gets through memory\n{device}, torch {torch}, CUDA graph, cold L2, best of "
        "several launch shapes, medians",
        loc="left", fontsize=11,
    )  # fmt: skip
    for axes in (rates, times):
        tidy(axes)
    return figure
