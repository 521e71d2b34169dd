"""Coverage: for keys that differ in batch and capacity alone, which of the two are recorded, how good each is,
and which a record nearby serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...database.record import TuningRecord
from ...db_command.summary import shape_name
from ...select.lookup import NEIGHBOURS
from .rows import rows_of
from .theme import microseconds, times

# Shares of the read ceiling and their colours, between which cells are mixed. Text on them is always dark.
_SCALE = ((0.3, (0xF0, 0xA3, 0x7A)), (0.7, (0xF3, 0xDD, 0x9A)), (1.0, (0x63, 0xC1, 0xA0)))
_PLAIN = "#b9c7dd"
_UNMEASURED = "~"

# Buckets of batch and capacity.
Place = tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """One batch and capacity. ``label`` is empty where no record serves it; ``colour`` is a CSS colour of ours."""

    label: str
    colour: str
    tip: str


@dataclass(frozen=True)
class Grid:
    """One shape: ``rows`` of cells, a batch each, in the order of ``batches``; columns as ``capacities``. ``served``
    counts the cells that have a measured record, and those that lookup serves by a neighbouring bucket's."""

    shape: str
    capacities: tuple[str, ...]
    batches: tuple[int, ...]
    rows: tuple[tuple[Cell, ...], ...]
    recorded: int
    served: int

    @property
    def cells(self) -> int:
        return len(self.batches) * len(self.capacities)


def grids(records: Sequence[TuningRecord]) -> list[Grid]:
    """A grid per shape: every power of two from the least to the greatest batch that any shape has, and capacity that
    it has itself."""
    shapes: dict[str, list[TuningRecord]] = {}
    for record in records:
        shapes.setdefault(shape_name(record.key), []).append(record)
    batches = _powers(record.key.batch_bucket for record in records)
    return [_grid(shape, members, batches) for shape, members in shapes.items()]


def _powers(sizes: Iterable[int]) -> tuple[int, ...]:
    """All powers of two from the least to the greatest of ``sizes``, which are some."""
    sizes = tuple(sizes)
    return tuple(1 << power for power in range(min(sizes).bit_length() - 1, max(sizes).bit_length())) if sizes else ()


def _grid(shape: str, records: Sequence[TuningRecord], batches: tuple[int, ...]) -> Grid:
    at: dict[Place, TuningRecord] = {}
    for record in records:
        place = (record.key.batch_bucket, record.key.capacity_bucket)
        known = at.get(place)
        if known is None or _rank(record) > _rank(known):
            at[place] = record
    capacities = _powers(record.key.capacity_bucket for record in records)
    rows = tuple(tuple(_cell((batch, capacity), at) for capacity in capacities) for batch in batches)
    served = sum(cell.label not in ("", _UNMEASURED) for row in rows for cell in row)
    return Grid(shape, tuple(_short(capacity) for capacity in capacities), batches, rows, len(at), served)


def _rank(record: TuningRecord) -> tuple[bool, str]:
    """Of records of one key by several toolchains, the measured and newest one is shown."""
    return record.measured, record.evidence.date


def _cell(place: Place, at: Mapping[Place, TuningRecord]) -> Cell:
    if place not in at:
        return _cell_without_record(place, at)
    record = at[place]
    rows = rows_of([record])
    if not rows:
        modelled = record.evidence.modelled_us
        tip = f"not measured; the model says {microseconds(modelled)}" if modelled is not None else "not measured"
        return Cell(_UNMEASURED, "", f"{tip}; {record.config.encode()}")
    row = rows[0]
    tip = f"{microseconds(row.median_us)}, {times(row.gain)} the heuristic; {row.config.encode()}"
    if row.share is None:
        return Cell("✓", _PLAIN, tip)
    return Cell(f"{100 * row.share:.0f}", share_colour(row.share), f"{row.share:.1%} of the read ceiling; {tip}")


def _cell_without_record(place: Place, at: Mapping[Place, TuningRecord]) -> Cell:
    """What lookup does: the first neighbour in its order serves."""
    for batch_step, capacity_step in NEIGHBOURS:
        batch, capacity = place[0] * 2.0**batch_step, place[1] * 2.0**capacity_step
        near = at.get((int(batch), int(capacity)))
        if near is not None and near.measured:
            return Cell("·", "", f"served by the record of batch {int(batch)}, capacity {int(capacity)}")
    return Cell("", "", "no record: the heuristic serves")


def share_colour(share: float) -> str:
    """The CSS colour of a share of the read ceiling."""
    low = _SCALE[0]
    if share <= low[0]:
        return _css(low[1])
    for high in _SCALE[1:]:
        if share <= high[0]:
            part = (share - low[0]) / (high[0] - low[0])
            return _css(tuple(round(a + part * (b - a)) for a, b in zip(low[1], high[1], strict=True)))
        low = high
    return _css(low[1])


def _css(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _short(size: int) -> str:
    """``512``, ``4K``, ``128K``."""
    return f"{size >> 10}K" if size >= 1024 else str(size)
