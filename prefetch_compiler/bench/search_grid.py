"""The sub-space of the search space that tables are recorded over: small enough to measure every point of it, large
enough that a search of it is one. Around 1,500 points a key, of which 1,000 to 1,400 are feasible.

Left out are values that hardly ever win (tiles of 16 and 256, one warp, five stages and more, merging in place, no
launch overlap where there is one), rows padded to a warpgroup's, which the tables that are kept do not have, and depths
between; splits are the four declared values nearest to what gives each SM one program.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import BaseTrial

from ..config import KernelConfig
from ..database.key import TuningKey
from ..device import DeviceProfile
from ..select.footprint import programs_before_splitting
from ..space import KNOBS, Knob, config_at
from ..tuning.distributions import SearchSpace

Values = dict[str, tuple[Any, ...]]
SPLITS = 4
# Of a recorded table's points, the first changing slowest. A knob that came later stands last.
_ORDER = (
    "block_kv", "num_splits", "num_warps", "num_stages", "load_path", "operand_order", "launch_overlap", "merge",
    "partition", "prologue_prefetch", "prefetch_depth", "prefetch_kind",
)  # fmt: skip


def grid_values(key: TuningKey, profile: DeviceProfile) -> Values:
    """The values of every knob, in the order of the knobs."""
    declared = {knob.name: knob.values for knob in KNOBS}
    filling = max(1.0, profile.sm_count / programs_before_splitting(key.spec()))
    nearest = sorted(declared["num_splits"], key=lambda splits: abs(math.log2(splits / filling)))
    return {
        **declared,
        "block_kv": (32, 64, 128),
        "num_splits": tuple(sorted({1, *nearest[:SPLITS]}))[: SPLITS + 1],
        "num_warps": (2, 4, 8),
        "num_stages": (1, 2, 3, 4),
        "load_path": ("pointer", "tma"),
        "operand_order": ("qk", "kq"),
        "launch_overlap": (profile.has_launch_overlap,),
        "merge": ("separate",),
        "partition": ("strided",),
        "prologue_prefetch": (False,),
        "prefetch_depth": (0, 2),
        "prefetch_kind": ("line", "bulk"),
    }


def grid_points(values: Mapping[str, Sequence[Any]]) -> list[KernelConfig]:
    """Every point of the sub-space once, in a fixed order."""
    knobs = sorted(KNOBS, key=lambda knob: _ORDER.index(knob.name))
    points = itertools.product(*(_values(knob, values) for knob in knobs))
    named = (dict(zip((knob.name for knob in knobs), point, strict=True)) for point in points)
    return list(dict.fromkeys(config_at(point) for point in named))


def _values(knob: Knob, values: Mapping[str, Sequence[Any]]) -> tuple[Any, ...]:
    """A table that was recorded before a knob came to be holds its default."""
    return tuple(values.get(knob.name, (knob.default,)))


class GridSpace(SearchSpace):
    """Proposals of the search, each moved to the nearest point of the grid."""

    def __init__(self, key: TuningKey, profile: DeviceProfile, values: Values) -> None:
        super().__init__(key, profile, values=values)
        self._grid = values

    def suggest(self, trial: BaseTrial) -> KernelConfig:
        return self.snap(super().suggest(trial))

    def draw(self, generator: random.Random) -> KernelConfig:
        return self.snap(super().draw(generator))

    def snap(self, config: KernelConfig) -> KernelConfig:
        """The grid's point nearest to ``config``, knob by knob; distances between numbers are ratios."""
        point = config.to_dict()
        for knob in KNOBS:
            values = _values(knob, self._grid)
            if knob.ordered:
                point[knob.name] = min(values, key=lambda value: _apart(value, point[knob.name]))
            elif point[knob.name] not in values:
                point[knob.name] = values[0]
        return config_at(point)


def _apart(value: int, other: int) -> float:
    return abs(math.log2((value + 0.5) / (other + 0.5)))
