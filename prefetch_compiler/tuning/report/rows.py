"""A record as the report's figures and tables see it: one flat row of numbers and names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...config import KernelConfig
from ...database.key import TuningKey
from ...database.record import FillTiming, TuningRecord
from ...db_command.summary import gain_over_default, gain_over_depth0


@dataclass(frozen=True)
class Row:
    """One measured record. Times are microseconds, sizes bytes.

    Attributes:
        heads: query and KV heads and head_dim, as in ``32q/8kv d128``: the colour in figures.
        kv_bytes: K and V at the fullest level measured.
        share: of the read ceiling; None where the ceiling was not measured.
        gain: the heuristic's time over the winner's.
        depth0_gain: the best time without prefetch over the winner's.
    """

    record: TuningRecord
    heads: str
    kv_bytes: int
    median_us: float
    p20_us: float
    p80_us: float
    share: float | None
    gain: float
    depth0_gain: float

    @property
    def key(self) -> TuningKey:
        return self.record.key

    @property
    def config(self) -> KernelConfig:
        return self.record.config

    @property
    def fills(self) -> tuple[FillTiming, ...]:
        return self.record.evidence.measurement.fills if self.record.evidence.measurement is not None else ()


def rows_of(records: Iterable[TuningRecord]) -> list[Row]:
    """The measured records, smallest caches first."""
    rows = [row for record in records if (row := _row(record)) is not None]
    return sorted(rows, key=lambda row: (row.kv_bytes, row.key.name))


def heads_of(key: TuningKey) -> str:
    dims = f"d{key.head_dim}" if key.head_dim == key.value_dim else f"d{key.head_dim}/{key.value_dim}"
    return f"{key.group * key.kv_heads}q/{key.kv_heads}kv {dims}"


def _row(record: TuningRecord) -> Row | None:
    measurement = record.evidence.measurement
    if measurement is None:
        return None
    timing = measurement.timing
    return Row(
        record=record,
        heads=heads_of(record.key),
        kv_bytes=max(fill.kv_bytes for fill in measurement.fills),
        median_us=timing.median_us,
        p20_us=timing.p20_us,
        p80_us=timing.p80_us,
        share=measurement.ceiling_share or None,
        gain=gain_over_default(measurement),
        depth0_gain=gain_over_depth0(measurement),
    )
