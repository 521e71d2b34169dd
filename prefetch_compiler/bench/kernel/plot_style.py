"""What all plots share: colours, sizes, and saving a figure without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plot_file import save_png

if TYPE_CHECKING:
    from .result import KernelRun

# Middle tones that stay apart for colour-blind eyes on white.
COLOURS = {
    "kvprefetch": "#1f4e9e",
    "SDPA": "#e08214",
    "FlexAttention": "#8073ac",
    "FlashInfer": "#35978f",
    "FlashAttention 2": "#66a61e",
    "FlashAttention 3": "#c51b7d",
    "xformers": "#7a7a7a",
}
OTHER_COLOUR = "#999999"
CEILING_COLOUR = "#444444"
DPI = 150


def colour_of(family: str) -> str:
    return COLOURS.get(family, OTHER_COLOUR)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure in inches and its axes; no window, whatever the machine has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **options)


def subtitle(run: KernelRun) -> str:
    environment = run.environment
    return f"{environment.get('device')}, torch {environment.get('torch')}, CUDA graph, cold L2, medians"


def tidy(axes: Any) -> None:
    """A light grid, and no frame on the right and above."""
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Any, folder: Path, name: str) -> Path:
    return save_png(figure, folder / f"{name}.png", DPI)


def byte_ticks(axes: Any) -> None:
    """Powers of two on the x axis, as MB of 2^20."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=14))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_label(value)))


def byte_label(count: float) -> str:
    """``512 KiB``, ``4 MiB``, ``1 GiB``."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def size_ticks(axes: Any, sizes: list[int]) -> None:
    """The given sizes on a logarithmic x axis, thinned out to what fits: powers of two first."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    powers = [size for size in sizes if size & (size - 1) == 0]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(powers or sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_label(round(value))))


def size_label(size: int) -> str:
    """``512``, ``8K``, ``128K``."""
    return f"{size // 1024}K" if size >= 1024 and size % 1024 == 0 else str(size)
