"""Recorded tables: the time of every point of a key's grid, as compact JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import KernelConfig
from ..database.key import TuningKey, parse_key
from ..device import DeviceProfile
from .errors import InvalidTableError
from .search_grid import Values, grid_points

_FORMAT = 1
# In place of a time: why there is none. Times are in hundredths of a microsecond.
INFEASIBLE, TOO_LARGE, FAILED, UNMEASURED = -1, -2, -3, -4
_PER_US = 100


@dataclass(frozen=True)
class SearchTable:
    """``times`` has one entry for each point of the grid, in its order: hundredths of a microsecond, or the negative
    code of a reason. ``origin`` says how it was made: versions, seed, date."""

    key: TuningKey
    profile: DeviceProfile
    values: Values
    times: tuple[int, ...]
    origin: dict[str, Any]

    def by_config(self) -> dict[KernelConfig, int]:
        return dict(zip(grid_points(self.values), self.times, strict=True))

    @property
    def feasible(self) -> int:
        """Points that have a time or died trying: what a search of the whole grid would pay for."""
        return sum(time >= 0 or time == FAILED for time in self.times)

    @property
    def optimum_us(self) -> float:
        return min(time for time in self.times if time >= 0) / _PER_US

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key.name,
            "device": asdict(self.profile),
            "values": self.values,
            "times": self.times,
            "origin": self.origin,
        }


def time_code(time_us: float) -> int:
    return max(1, round(time_us * _PER_US))


def time_us(code: int) -> float:
    return code / _PER_US


def write_tables(path: Path, tables: Sequence[SearchTable]) -> None:
    plain = {"format": _FORMAT, "tables": [table.to_dict() for table in tables]}
    path.write_text(json.dumps(plain, separators=(",", ":")) + "\n")


def read_tables(path: Path) -> list[SearchTable]:
    """Every table in ``path``.

    Raises:
        InvalidTableError: it cannot be read, or holds something else.
    """
    try:
        plain = json.loads(path.read_text())
        if plain["format"] != _FORMAT:
            raise InvalidTableError(path, f"format {plain['format']!r} is not {_FORMAT}")
        tables = [_table(entry) for entry in plain["tables"]]
    except InvalidTableError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidTableError(path, f"{type(error).__name__}: {error}") from error
    for table in tables:
        if len(table.times) != len(grid_points(table.values)) or not any(time >= 0 for time in table.times):
            raise InvalidTableError(path, f"the times of {table.key.name} do not fit its grid")
    return tables


def _table(plain: dict[str, Any]) -> SearchTable:
    return SearchTable(
        key=parse_key(plain["key"]),
        profile=DeviceProfile(**plain["device"]),
        values={name: tuple(values) for name, values in plain["values"].items()},
        times=tuple(int(time) for time in plain["times"]),
        origin=dict(plain["origin"]),
    )
