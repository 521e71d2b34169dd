"""Figures of measured records: how near to the ceiling, what tuning gained, and what won where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ...config import KernelConfig
from .rows import Row
from .theme import (
    COLOURS,
    DEPTH_COLOURS,
    bandwidth,
    byte_axis,
    byte_size,
    cycle,
    layout,
    microseconds,
    text,
    times,
)

# Up to so many records each has a bar with its name; beyond, each is a point.
MAX_BARS = 24
# From so many records on, a distribution has a box.
MIN_BOX = 8
# Fewer records are told in words.
MIN_STRIPS = 3


def hover(row: Row) -> str:
    """What a point says of its record."""
    full = row.fills[-1]
    share = f"{row.share:.1%} of the read ceiling<br>" if row.share is not None else ""
    return (
        f"<b>{text(row.key.name)}</b><br>{microseconds(row.median_us)}, {share}"
        f"full: {byte_size(full.kv_bytes)} at {bandwidth(full.kv_bytes / full.median_us)}<br>"
        f"{times(row.gain)} the heuristic, {times(row.depth0_gain)} the best without prefetch<br>"
        f"{row.config.encode()}"
    )


def roofline(rows: Sequence[Row]) -> go.Figure | None:
    """Share of the read ceiling against KV bytes, a point a record; None where no ceiling was measured."""
    known = [row for row in rows if row.share is not None]
    if not known:
        return None
    figure = go.Figure()
    looks = cycle(sorted({row.heads for row in known}, key=_by_numbers))
    for heads, (colour, symbol) in looks.items():
        mine = [row for row in known if row.heads == heads]
        figure.add_scatter(
            x=[row.kv_bytes for row in mine],
            y=[row.share for row in mine],
            name=text(heads),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": _size(len(known)), "opacity": _opacity(len(known))},
            hovertext=[hover(row) for row in mine],
            hoverinfo="text",
        )
    shares = [row.share or 0.0 for row in known]
    low, high = max(0.0, math.floor(10 * min(shares) - 0.5) / 10), max(1.0, *shares)
    figure.add_hline(y=1.0, line={"color": COLOURS[2], "width": 1.5, "dash": "dash"})
    figure.update_layout(
        layout(
            460,
            xaxis=byte_axis([row.kv_bytes for row in known], "K and V in a full cache"),
            yaxis={
                "title": "share of the read ceiling",
                "tickformat": ".0%",
                "range": [low, high + 0.06 * (high - low)],
            },
        )
    )
    return figure


def bandwidths(rows: Sequence[Row]) -> go.Figure | None:
    """Bytes over time at every fill level, beside what a read-only kernel reached over as many bytes."""
    fills = [(row, fill) for row in rows for fill in row.fills]
    ceilings = sorted({(f.kv_bytes, f.kv_bytes / f.ceiling_us / 1000) for _, f in fills if f.ceiling_us > 0})
    if not fills:
        return None
    figure = go.Figure()
    if ceilings:
        figure.add_scatter(
            x=[size for size, _ in ceilings],
            y=[speed for _, speed in ceilings],
            name="read-only kernel",
            mode="markers",
            marker={"color": COLOURS[2], "symbol": "line-ew-open", "size": 9, "line": {"width": 2}},
            hovertemplate="read-only kernel: %{y:.0f} GB/s<extra></extra>",
        )
    for held, colour in ((False, COLOURS[3]), (True, COLOURS[0])):
        mine = [(row, fill) for row, fill in fills if (fill is row.fills[-1]) is held]
        figure.add_scatter(
            x=[fill.kv_bytes for _, fill in mine],
            y=[fill.kv_bytes / fill.median_us / 1000 for _, fill in mine],
            name="full cache" if held else "partly filled",
            mode="markers",
            marker={"color": colour, "size": _size(len(fills)), "opacity": _opacity(len(fills))},
            hovertext=[
                f"<b>{text(row.key.name)}</b><br>{fill.held} keys held: {byte_size(fill.kv_bytes)} in "
                f"{microseconds(fill.median_us)}, {bandwidth(fill.kv_bytes / fill.median_us)}"
                for row, fill in mine
            ],
            hoverinfo="text",
        )
    figure.update_layout(
        layout(
            420,
            xaxis=byte_axis([fill.kv_bytes for _, fill in fills], "K and V that a launch must read"),
            yaxis={"title": "GB/s", "rangemode": "tozero", "tickformat": ","},
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        )
    )
    return figure


def gains(rows: Sequence[Row]) -> go.Figure | None:
    """Times faster than the heuristic, and than the best without prefetch: bars for few records, points for many."""
    if not rows:
        return None
    return _gain_bars(rows) if len(rows) <= MAX_BARS else _gain_points(rows)


def _gain_bars(rows: Sequence[Row]) -> go.Figure:
    names = [text(row.key.name) for row in rows]
    figure = go.Figure()
    sides: tuple[tuple[str, Callable[[Row], float], str], ...] = (
        ("best without prefetch", lambda row: row.depth0_gain, COLOURS[1]),
        ("heuristic", lambda row: row.gain, COLOURS[0]),
    )
    for name, gain, colour in sides:
        figure.add_bar(
            y=names,
            x=[gain(row) - 1 for row in rows],
            base=1,
            name=f"against the {name}",
            orientation="h",
            marker={"color": colour},
            text=[times(gain(row)) for row in rows],
            textposition="outside",
            cliponaxis=False,
            hovertext=[hover(row) for row in rows],
            hoverinfo="text",
        )
    high = max(max(row.gain, row.depth0_gain) for row in rows)
    low = min(1.0, *(min(row.gain, row.depth0_gain) for row in rows))
    # Room for the number at a bar's end.
    right = high + 0.12 * (high - low + 0.05)
    figure.update_layout(
        layout(
            120 + 44 * len(rows),
            barmode="group",
            bargap=0.3,
            xaxis={"title": "speed over the rival's", "range": [low - 0.01, right], "ticksuffix": "×"},
            yaxis={"automargin": True, "autorange": "reversed", "showgrid": False},
            legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "reversed"},
            margin={"l": 16, "r": 48, "t": 40, "b": 48},
        )
    )
    figure.add_vline(x=1.0, line={"color": "#8a93a0", "width": 1.5})
    return figure


def _gain_points(rows: Sequence[Row]) -> go.Figure:
    sides: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("against the heuristic", lambda row: row.gain),
        ("against the best without prefetch", lambda row: row.depth0_gain),
    )
    figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=[name for name, _ in sides]
    )
    for depth in sorted({row.config.prefetch_depth for row in rows}):
        mine = [row for row in rows if row.config.prefetch_depth == depth]
        for column, (_, gain) in enumerate(sides, start=1):
            figure.add_scatter(
                x=[row.kv_bytes for row in mine],
                y=[gain(row) for row in mine],
                name=f"depth {depth}",
                legendgroup=str(depth),
                showlegend=column == 1,
                mode="markers",
                marker={"color": DEPTH_COLOURS.get(depth), "size": _size(len(rows)), "opacity": _opacity(len(rows))},
                hovertext=[hover(row) for row in mine],
                hoverinfo="text",
                row=1,
                col=column,
            )
    axis = byte_axis([row.kv_bytes for row in rows], "K and V in a full cache")
    # Two panels share the width: every other tick.
    axis |= {"tickvals": axis["tickvals"][::2], "ticktext": axis["ticktext"][::2]}
    figure.update_layout(
        layout(
            440,
            xaxis=axis,
            xaxis2=axis,
            yaxis={"title": "speed over the rival's", "ticksuffix": "×"},
            legend={"title": {"text": "prefetch<br>of the winner"}},
            margin={"l": 64, "r": 24, "t": 40, "b": 56},
        )
    )
    figure.add_hline(y=1.0, line={"color": "#8a93a0", "width": 1.5})
    return figure


def prefetch_worth(rows: Sequence[Row]) -> go.Figure | None:
    """For each depth that won, what it gained over the best without prefetch; None where few winners prefetch."""
    depths = sorted({row.config.prefetch_depth for row in rows} - {0})
    if sum(row.config.prefetches for row in rows) < MIN_STRIPS:
        return None
    figure = go.Figure()
    for depth in depths:
        mine = [row for row in rows if row.config.prefetch_depth == depth]
        colour = DEPTH_COLOURS.get(depth)
        figure.add_box(
            y=[row.depth0_gain for row in mine],
            name=f"depth {depth}<br>{len(mine)} of {len(rows)}",
            boxpoints="all",
            jitter=0.5,
            pointpos=0,
            fillcolor="rgba(0,0,0,0)",
            # A box of a handful of points says more than they do.
            line={"color": colour, "width": 1.5 if len(mine) >= MIN_BOX else 0},
            marker={"color": colour, "size": _size(len(mine)), "opacity": _opacity(len(mine)), "line": {"width": 0}},
            hovertext=[hover(row) for row in mine],
            hoverinfo="text",
            showlegend=False,
        )
    figure.add_hline(y=1.0, line={"color": "#8a93a0", "width": 1.5})
    figure.update_layout(layout(400, yaxis={"title": "speed over the best<br>without prefetch", "ticksuffix": "×"}))
    return figure


_CHOICES: tuple[tuple[str, Callable[[KernelConfig], str]], ...] = (
    ("prefetch depth", lambda c: str(c.prefetch_depth)),
    ("prefetch kind", lambda c: c.prefetch_kind.value if c.prefetches else "none"),
    ("load path", lambda c: c.load_path.value),
    ("keys per tile", lambda c: str(c.block_kv)),
    ("splits", lambda c: _range_of(c.num_splits)),
    ("partition", lambda c: c.partition.value if c.num_splits > 1 else "one split"),
    ("prologue prefetch", lambda c: "yes" if c.prologue_prefetch else "no"),
    ("merge", lambda c: c.merge.value if c.num_splits > 1 else "one split"),
    ("pipeline stages", lambda c: str(c.num_stages)),
    ("warps", lambda c: str(c.num_warps)),
    ("launch overlap", lambda c: "yes" if c.launch_overlap else "no"),
)


def winners(rows: Sequence[Row]) -> list[tuple[str, go.Figure]]:
    """For each choice that configurations make, the share of the records in which each value won, by KV bytes."""
    if not rows:
        return []
    classes = _size_classes(rows)
    return [(name, _shares(classes, value, name)) for name, value in _CHOICES]


def _shares(classes: dict[str, list[Row]], value: Callable[[KernelConfig], str], name: str) -> go.Figure:
    values = sorted({value(row.config) for rows in classes.values() for row in rows}, key=_by_numbers)
    looks = _colours(name, values)
    figure = go.Figure()
    for one in values:
        counts = [Counter(value(row.config) for row in rows)[one] for rows in classes.values()]
        figure.add_bar(
            x=list(classes),
            y=[count / len(rows) for count, rows in zip(counts, classes.values(), strict=True)],
            name=one,
            marker={"color": looks[one]},
            hovertext=[
                f"{name} {one}: {count} of {len(rows)} records"
                for count, rows in zip(counts, classes.values(), strict=True)
            ],
            hoverinfo="text",
        )
    figure.update_layout(
        layout(
            260,
            barmode="stack",
            bargap=0.12,
            xaxis={"type": "category", "tickfont": {"size": 11}},
            yaxis={"tickformat": ".0%", "range": [0, 1], "nticks": 5},
            legend={"font": {"size": 11}, "traceorder": "normal"},
            margin={"l": 44, "r": 8, "t": 8, "b": 36},
        )
    )
    return figure


_ABSENT = ("none", "no", "one split")


def _colours(name: str, values: Sequence[str]) -> dict[str, str | None]:
    if name == "prefetch depth":
        return {value: DEPTH_COLOURS.get(int(value)) for value in values}
    colours = iter(COLOURS * 2)
    return {value: DEPTH_COLOURS[0] if value in _ABSENT else next(colours) for value in values}


def _size_classes(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Records by KV bytes, in classes a factor of 8 wide; named by their lower ends: ``8M`` is 8 MiB to 64 MiB."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(math.floor(math.log2(row.kv_bytes / 2**20) / 3), []).append(row)
    return {byte_size(2**20 * 8.0**at).replace(" ", "").removesuffix("iB"): found[at] for at in sorted(found)}


def _range_of(splits: int) -> str:
    """``1``, ``2–3``, ``4–7``, ...: heuristics choose any number of splits."""
    low = 1 << (splits.bit_length() - 1)
    return str(low) if low == 1 else f"{low}–{2 * low - 1}"


def _by_numbers(name: str) -> tuple[list[int], str]:
    """Sorts names by the numbers in them, and names of what is absent first."""
    words = "".join(c if c.isdigit() else " " for c in name).split()
    return [int(word) for word in words], "" if name in _ABSENT else name


def _size(points: int) -> int:
    return 11 if points <= 40 else 8 if points <= 400 else 6


def _opacity(points: int) -> float:
    return 0.95 if points <= 40 else 0.8 if points <= 400 else 0.6
