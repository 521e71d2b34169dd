"""The declared cases: a few of everything first, then the grid, and dense sweeps of one size.

The grid is a union of slices and not a product, which would take days: shapes of every kind of heads; how full caches
are; head dims; layouts. Where nothing else is said a case is a full static cache: what a compiled model reads through a
mask, and peers that need none are right on it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from ...errors import InvalidOptionError
from .cases import CacheLayout, Case, Fill, matches, parse_case

MHA, GQA4, GQA8, GQA7, MQA = (32, 32), (32, 8), (64, 8), (28, 4), (32, 1)
HEADS = (MHA, GQA4, GQA8, GQA7, MQA)

# (batch, capacity): latency-bound, bandwidth-bound, long, and many short sequences.
SHAPES = ((1, 1024), (1, 8192), (1, 65536), (1, 131072), (8, 2048), (16, 4096), (64, 4096), (128, 1024), (256, 128))
FILL_SHAPES = ((1, 8192), (16, 4096), (64, 4096))
DIM_SHAPES = ((1, 8192), (16, 4096), (64, 2048))
LAYOUT_SHAPES = ((1, 8192), (16, 4096), (64, 2048))
RAGGED_SHAPE = (32, 8192)
HEAD_DIMS = (64, 80, 256)

SWEPT_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
BATCH_SWEEP_CAPACITY = 4096
SWEPT_LENGTHS = (*(size for power in range(7, 17) for size in (1 << power, 3 << (power - 1))), 1 << 17)
LENGTH_SWEEP_BATCHES = (1, 16)


class Sweep(str, Enum):
    """One size in small steps, everything else fixed."""

    BATCH = "batch"
    LENGTH = "length"


def _case(
    heads: tuple[int, int],
    shape: tuple[int, int],
    dim: int = 128,
    fill: Fill = Fill.FULL,
    layout: CacheLayout = CacheLayout.BHSD,
) -> Case:
    return Case(heads[0], heads[1], dim, shape[0], shape[1], fill, layout)


QUICK: tuple[Case, ...] = (
    _case(GQA4, (1, 8192)),
    _case(GQA4, (16, 4096), fill=Fill.HALF),
    _case(GQA4, (64, 4096)),
    _case(GQA4, RAGGED_SHAPE, fill=Fill.RAGGED),
    _case(MHA, (1, 4096), fill=Fill.DENSE),
    _case(GQA7, (16, 4096), fill=Fill.EIGHTH),
    _case(GQA4, (16, 4096), layout=CacheLayout.PAGE64),
    _case(MQA, (64, 4096), fill=Fill.DENSE),
    _case(GQA4, (16, 4096), dim=64, layout=CacheLayout.BSHD),
)


def declared() -> tuple[Case, ...]:
    """Every declared case, each once: the quick ones first, so that a short run has seen a little of everything."""
    return tuple(dict.fromkeys((*QUICK, *_shapes(), *_fills(), *_dims(), *_layouts())))


def _shapes() -> Iterable[Case]:
    return (_case(heads, shape) for heads in HEADS for shape in SHAPES)


def _fills() -> Iterable[Case]:
    yield from (_case(heads, shape, fill=Fill.DENSE) for heads in HEADS for shape in FILL_SHAPES)
    partly = (Fill.HALF, Fill.EIGHTH, Fill.RAGGED)
    yield from (_case(GQA4, shape, fill=fill) for fill in partly for shape in FILL_SHAPES)
    yield from (_case(heads, RAGGED_SHAPE, fill=Fill.RAGGED) for heads in HEADS)


def _dims() -> Iterable[Case]:
    return (_case(heads, shape, dim) for dim in HEAD_DIMS for heads in (GQA4, MHA) for shape in DIM_SHAPES)


def _layouts() -> Iterable[Case]:
    others = (CacheLayout.BSHD, CacheLayout.PAGE16, CacheLayout.PAGE64)
    for layout in others:
        yield from (_case(GQA4, shape, layout=layout) for shape in LAYOUT_SHAPES)
        yield _case(GQA4, RAGGED_SHAPE, fill=Fill.RAGGED, layout=layout)


def swept(sweep: Sweep) -> tuple[Case, ...]:
    """32 query and 8 KV heads of 128: every batch at one capacity, or every capacity at two batches."""
    if sweep is Sweep.BATCH:
        return tuple(_case(GQA4, (batch, BATCH_SWEEP_CAPACITY)) for batch in SWEPT_BATCHES)
    return tuple(_case(GQA4, (batch, length)) for batch in LENGTH_SWEEP_BATCHES for length in SWEPT_LENGTHS)


def chosen(cases: str, quick: bool, sweep: Sweep | None) -> tuple[Case, ...]:
    """What the command line asks for, each case once.

    Args:
        cases: comma-separated. An entry with heads, batch and capacity declares a case; any other selects those of the
            grid (or of the quick set, or of the sweep) that have all of its words. Empty: all of them.

    Raises:
        InvalidOptionError: an entry is malformed or selects nothing.
    """
    if sweep is not None:
        pool = swept(sweep)
    else:
        pool = QUICK if quick else declared()
    if not cases.strip():
        return pool
    return tuple(dict.fromkeys(case for entry in cases.split(",") for case in _entry(entry, pool)))


def _entry(entry: str, pool: Sequence[Case]) -> list[Case]:
    declares = parse_case(entry)
    if declares is not None:
        return [declares]
    selected = [case for case in pool if matches(case, entry)]
    if not entry.strip() or not selected:
        raise InvalidOptionError("cases", entry, "words that some case has, or a case like '32q/8kv b16 s4096 half'")
    return selected
