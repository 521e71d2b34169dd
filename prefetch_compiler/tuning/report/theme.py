"""Colours, and what all figures share. Everything is transparent or of a middle tone, so that one figure does for a
light page, a dark one and paper; text and grid lines are coloured by the page itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

# Middle tones that stay apart for colour-blind eyes, on white and on near-black.
COLOURS = (
    "#4269d0", "#e0a30e", "#ff725c", "#3ca99b", "#a463f2", "#e377c2", "#9c6b4e", "#8a93a0", "#3ca951", "#5fb0e8",
)  # fmt: skip
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "triangle-down", "x", "star")
# By prefetch depth: none is grey, and deeper is darker.
DEPTH_COLOURS = {
    0: "#9aa3ae", 1: "#f2b33d", 2: "#ef8a3a", 3: "#e0603f", 4: "#c93c56", 5: "#b3306b", 6: "#96298a", 7: "#7628a0",
    8: "#5a2bb0",
}  # fmt: skip
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_MAX_BYTE_TICKS = 9


class Tile(NamedTuple):
    """One number of a section at a glance, what it is, and a second line."""

    value: str
    name: str
    detail: str


def text(value: object) -> str:
    """A name from a file, for a figure's label: Plotly reads a little HTML in those."""
    return escape(str(value), quote=False)


def byte_size(count: float) -> str:
    """``16 MiB``, ``1.5 GiB``: three digits at most."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"


def microseconds(time_us: float) -> str:
    """``8.42 µs``, ``51.0 µs``, ``1.20 ms``: three digits."""
    value, unit = (time_us, "µs") if time_us < 999.5 else (time_us / 1000, "ms")
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def bandwidth(bytes_per_us: float) -> str:
    """``812 GB/s``, ``4.52 TB/s``."""
    gb_per_s = bytes_per_us / 1000
    return f"{gb_per_s / 1000:.2f} TB/s" if gb_per_s >= 1000 else f"{gb_per_s:.0f} GB/s"


def times(ratio: float) -> str:
    return f"{ratio:.3f}×"


def byte_axis(values: Iterable[float], title: str) -> dict[str, Any]:
    """A logarithmic axis of bytes, with ticks at powers of two."""
    known = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log2(min(known))), math.ceil(math.log2(max(known)))
    step = max(1, math.ceil((high - low + 1) / _MAX_BYTE_TICKS))
    ticks = [2.0**power for power in range(low, high + 1, step)]
    pad = max(0.15, 0.03 * (high - low)) * math.log10(2)
    return {
        "type": "log",
        "title": title,
        "range": [low * math.log10(2) - pad, high * math.log10(2) + pad],
        "tickvals": ticks,
        "ticktext": [byte_size(tick) for tick in ticks],
    }


def layout(height: int, **more: Any) -> dict[str, Any]:
    """What a figure's layout starts from; ``height`` in pixels."""
    base: dict[str, Any] = {
        "height": height,
        "margin": {"l": 64, "r": 24, "t": 24, "b": 56},
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": list(COLOURS),
        "legend": {"font": {"size": 12}, "tracegroupgap": 2},
    }
    return base | more


def cycle(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a symbol for each name, no two alike while there are."""
    return {
        name: (COLOURS[at % len(COLOURS)], SYMBOLS[at // len(COLOURS) % len(SYMBOLS)]) for at, name in enumerate(names)
    }
