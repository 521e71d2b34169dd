"""The search space of KernelConfig, declared once: every knob, its values, and when it means anything.

A knob whose condition does not hold takes its default, so that no two points of the space are the same kernel. What a
spec or a device cannot run is not the space's business (see ``select.admissible``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .config import KernelConfig, LoadPath, Merge, OperandOrder, Partition, PrefetchKind

Point = dict[str, Any]


@dataclass(frozen=True)
class Knob:
    """One field of KernelConfig.

    Attributes:
        values: in order; plain data (enums by value), so that any study storage can hold them.
        ordered: whether neighbouring values behave alike (numbers), which samplers may use.
        active: whether the knob means anything, given the knobs before it.
    """

    name: str
    values: tuple[Any, ...]
    default: Any
    ordered: bool = False
    active: Callable[[Point], object] = lambda point: True


def _values(enum: Any) -> tuple[str, ...]:
    return tuple(member.value for member in enum)


def _is_free(point: Point) -> bool:
    """Whether tiles and warps are a choice: a kernel with a producer warp has settled them, as the defaults say."""
    return bool(point["load_path"] != LoadPath.PRODUCER.value)


KNOBS: tuple[Knob, ...] = (
    Knob("load_path", _values(LoadPath), LoadPath.POINTER.value),
    Knob("block_kv", (16, 32, 64, 128, 256), 64, ordered=True, active=_is_free),
    Knob("num_splits", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128), 1, ordered=True),
    Knob("num_warps", (1, 2, 4, 8), 4, ordered=True, active=_is_free),
    Knob("num_stages", (1, 2, 3, 4, 5, 6), 2, ordered=True, active=_is_free),
    Knob("operand_order", _values(OperandOrder), OperandOrder.QK.value, active=_is_free),
    Knob("launch_overlap", (False, True), False),
    Knob(
        "merge",
        _values(Merge),
        Merge.SEPARATE.value,
        active=lambda point: point["num_splits"] > 1 and _is_free(point),
    ),
    Knob("partition", _values(Partition), Partition.EVEN.value, active=lambda point: point["num_splits"] > 1),
    Knob(
        "prologue_prefetch",
        (False, True),
        False,
        active=lambda point: point.get("partition") != Partition.BALANCED.value and _is_free(point),
    ),
    Knob("prefetch_depth", (0, 1, 2, 3, 4, 6, 8), 0, ordered=True, active=_is_free),
    Knob(
        "prefetch_kind",
        _values(PrefetchKind),
        PrefetchKind.LINE.value,
        active=lambda point: point.get("prefetch_depth", 0) > 0 or point.get("prologue_prefetch"),
    ),
)


def config_at(point: Point) -> KernelConfig:
    """The configuration of a point; inactive or missing knobs take their defaults.

    Raises:
        InvalidConfigError: a value outside KernelConfig's own ranges.
    """
    chosen: Point = {}
    for knob in KNOBS:
        chosen[knob.name] = point.get(knob.name, knob.default) if knob.active(chosen) else knob.default
    return KernelConfig(
        **{
            **chosen,
            "prefetch_kind": PrefetchKind(chosen["prefetch_kind"]),
            "load_path": LoadPath(chosen["load_path"]),
            "operand_order": OperandOrder(chosen["operand_order"]),
            "merge": Merge(chosen["merge"]),
            "partition": Partition(chosen["partition"]),
        }
    )


def point_of(config: KernelConfig) -> Point:
    """The active knobs of ``config``. Values need not be among the knobs' own (a heuristic may choose 29 splits)."""
    fields = config.to_dict()
    point: Point = {}
    for knob in KNOBS:
        if knob.active({**fields, **point}):
            point[knob.name] = fields[knob.name]
    return point


def grid() -> Iterator[KernelConfig]:
    """Every point of the space, once."""

    def extend(point: Point, knobs: tuple[Knob, ...]) -> Iterator[Point]:
        if not knobs:
            yield point
            return
        knob, *rest = knobs
        for value in knob.values if knob.active(point) else (knob.default,):
            yield from extend({**point, knob.name: value}, tuple(rest))

    return map(config_at, extend({}, KNOBS))
