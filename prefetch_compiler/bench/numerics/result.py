"""Percentiles of errors, and whether a kernel errs more than it may beside the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...config import KernelConfig

if TYPE_CHECKING:
    from .group import Group
    from .measure import Errors
    from .problem import Cases

PERCENTILES = (50, 90, 99, 100)
# What a kernel may err of what the reference errs, at the same percentile.
ALLOWED = 1.5
# Where the reference is exact by luck, as with one key, a kernel may still round its output once.
ONE_ROUNDING = 1.0


@dataclass(frozen=True)
class GroupResult:
    """``kernel`` and ``reference`` are errors at PERCENTILES, in roundings of the largest sum of weights times
    magnitudes of values: eps / 2 of it. ``overflowed`` cases, in which the reference is not finite, are in neither;
    ``broken`` ones are those in which the kernel is not finite, or not 0 where nothing is seen."""

    template: str
    feature: str
    config: str = ""
    cases: int = 0
    kernel: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()
    overflowed: int = 0
    broken: int = 0
    worst: str = ""
    skipped_because: str = ""

    @staticmethod
    def skipped(group: Group, reason: str) -> GroupResult:
        return GroupResult(group.template, group.feature, skipped_because=reason)

    @staticmethod
    def of(group: Group, config: KernelConfig, cases: Cases, errors: Errors) -> GroupResult:
        counted = errors.reference.isfinite()
        kernel, reference = errors.kernel[counted], errors.reference[counted]
        worst = int(errors.kernel.argmax())
        return GroupResult(
            group.template, group.feature, config.encode(), cases.spec.batch, _at_percentiles(kernel),
            _at_percentiles(reference), int((~counted).sum()), int(errors.kernel.isinf().sum()),
            f"{cases.kinds[worst]}, {cases.held[worst]} keys",
        )  # fmt: skip

    @property
    def share(self) -> float:
        """The largest part that the kernel takes of what it may err: at most 1 where it is right."""
        if self.broken:
            return math.inf
        allowed = (ALLOWED * max(one, ONE_ROUNDING) for one in self.reference)
        return max((one / most for one, most in zip(self.kernel, allowed, strict=True)), default=0.0)

    @property
    def right(self) -> bool:
        return self.share <= 1.0

    def to_dict(self) -> dict[str, Any]:
        named = {
            name: dict(zip(map(str, PERCENTILES), values, strict=True))
            for name, values in (("kernel", self.kernel), ("reference", self.reference))
            if values
        }
        return {**vars(self), **named, "share": self.share, "right": self.right}


def _at_percentiles(errors: Tensor) -> tuple[float, ...]:
    """The smallest error that so many percent of the cases do not exceed."""
    if errors.numel() == 0:
        return (0.0,) * len(PERCENTILES)
    ordered = errors.sort().values
    places = (max(0, math.ceil(percent / 100 * len(ordered)) - 1) for percent in PERCENTILES)
    return tuple(float(ordered[place]) for place in places)


@dataclass(frozen=True)
class NumericsResult:
    groups: tuple[GroupResult, ...]
    seed: int

    @property
    def cases(self) -> int:
        return sum(group.cases for group in self.groups)

    @property
    def wrong(self) -> tuple[GroupResult, ...]:
        return tuple(group for group in self.groups if not group.right)

    def to_dict(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "seed": self.seed,
            "allowed": ALLOWED,
            "right": not self.wrong,
            "groups": [group.to_dict() for group in self.groups],
        }
