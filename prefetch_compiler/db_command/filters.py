"""Which records of a database a command is about."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..database.document import Database
from ..database.key import TuningKey
from ..database.merge import export


@dataclass(frozen=True)
class Filter:
    """Every condition that is set must hold. ``words`` are parts of a key's name; all of them must be in it."""

    words: tuple[str, ...] = ()
    dtype: str | None = None
    batch: int | None = None
    capacity: int | None = None
    measured: bool | None = None

    def apply(self, database: Database) -> Database:
        records = tuple(record for record in database.records if self._takes(record.key, record.measured))
        return Database(database.device, records, database.family_fallback)

    def _takes(self, key: TuningKey, measured: bool) -> bool:
        return (
            all(word in key.name for word in self.words)
            and self.dtype in (None, key.dtype)
            and self.batch in (None, key.batch_bucket)
            and self.capacity in (None, key.capacity_bucket)
            and self.measured in (None, measured)
        )


def for_sites(database: Database, keys: Sequence[TuningKey], neighbours: int) -> Database:
    """What a model with these keys needs: their records, and those of the same key up to ``neighbours`` buckets away in
    batch and in capacity, which serve sizes that were not captured."""
    return export(database, _with_neighbours(keys, neighbours))


def without_record(database: Database, keys: Sequence[TuningKey]) -> tuple[TuningKey, ...]:
    """The keys that the database says nothing of."""
    present = {record.key for record in database.records}
    return tuple(key for key in keys if key not in present)


def _with_neighbours(keys: Sequence[TuningKey], distance: int) -> Collection[TuningKey]:
    found: set[TuningKey] = set()
    for key in keys:
        for batch in _around(key.batch_bucket, distance):
            found.update(key.at(batch=batch, capacity=size) for size in _around(key.capacity_bucket, distance))
    return found


def _around(size: int, distance: int) -> set[int]:
    """The power of two ``size`` and those up to ``distance`` steps away."""
    return {size << step for step in range(distance + 1)} | {max(1, size >> step) for step in range(distance + 1)}
