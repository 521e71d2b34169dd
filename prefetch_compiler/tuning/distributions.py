"""The declared search space as Optuna sees it, narrowed to what a key and a device allow.

Each knob becomes a parameter: powers of two by their exponent (``log2_block_kv``), other ordered knobs as integers
(between the declared values too: 29 splits are as good a configuration as 32), the rest as categories. Parameters of
conditional knobs exist only in trials where the knob means something.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import BaseTrial

from ..config import MAX_SPLITS, KernelConfig, LoadPath, Merge, OperandOrder, Partition, PrefetchKind
from ..database.key import TuningKey, bucket
from ..device import DeviceProfile
from ..select.admissible import why_inadmissible
from ..select.footprint import WARPGROUP_WARPS
from ..space import KNOBS, Knob, Point, config_at, point_of
from ..spec import AttentionSpec
from .feasible import most_splits

# The least demanding configurations, and the one of a producer warp but for that: a value that is refused in all is no
# value for this key and device.
_PROBES = (
    *(
        KernelConfig(block_kv=16, num_splits=1, num_warps=warps, num_stages=stages, operand_order=order)
        for order in OperandOrder
        for stages in (1, 2)
        for warps in (1, WARPGROUP_WARPS)
    ),
    config_at({}),
)
_LOG2 = "log2_"
_ENUMS = {
    "load_path": LoadPath,
    "operand_order": OperandOrder,
    "merge": Merge,
    "partition": Partition,
    "prefetch_kind": PrefetchKind,
}


# Knobs whose values are powers of two.
_BY_EXPONENT = ("block_kv", "num_warps")


class SearchSpace:
    """Parameters of one key on one device.

    Args:
        included: configurations that must be representable.
        values: of each knob, where they are not the declared ones.
    """

    def __init__(
        self,
        key: TuningKey,
        profile: DeviceProfile,
        included: Iterable[KernelConfig] = (),
        values: Mapping[str, tuple[Any, ...]] | None = None,
    ) -> None:
        spec = key.spec()
        included = tuple(included)
        self._knobs = KNOBS if values is None else [_limited(knob, values) for knob in KNOBS]
        self._values = {knob.name: _allowed(knob, spec, profile) for knob in self._knobs}
        self.distributions: dict[str, BaseDistribution] = {}
        for knob in self._knobs:
            if knob.ordered:
                chosen = [getattr(config, knob.name) for config in included]
                self.distributions[parameter_name(knob)] = _integers(
                    knob, max([_highest(knob, spec, profile), *chosen])
                )
            else:
                self.distributions[parameter_name(knob)] = CategoricalDistribution(self._values[knob.name])

    def suggest(self, trial: BaseTrial) -> KernelConfig:
        """The configuration of a trial that was asked for."""

        def pick(name: str, distribution: BaseDistribution) -> Any:
            if isinstance(distribution, IntDistribution):
                return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
            assert isinstance(distribution, CategoricalDistribution)
            return trial.suggest_categorical(name, distribution.choices)

        return self._config(pick)

    def draw(self, generator: random.Random) -> KernelConfig:
        """A configuration at random, each parameter uniform over its distribution."""

        def pick(name: str, distribution: BaseDistribution) -> Any:
            if isinstance(distribution, CategoricalDistribution):
                return generator.choice(distribution.choices)
            assert isinstance(distribution, IntDistribution)
            low, high = distribution.low, distribution.high
            if distribution.log:
                return min(high, round(low * (high / low) ** generator.random()))
            return generator.randint(low, high)

        return self._config(pick)

    def _config(self, pick: Callable[[str, BaseDistribution], Any]) -> KernelConfig:
        point: Point = {}
        for knob in KNOBS:
            if knob.active(point):
                name = parameter_name(knob)
                value = pick(name, self.distributions[name])
                point[knob.name] = 1 << value if knob.name in _BY_EXPONENT else value
        return config_at(point)

    def params(self, config: KernelConfig) -> dict[str, Any]:
        """The parameters with which a trial becomes ``config``, conditional ones only where they mean something."""
        point = point_of(config)
        found = {}
        for knob in KNOBS:
            if knob.name in point:
                value = point[knob.name]
                found[parameter_name(knob)] = value.bit_length() - 1 if knob.name in _BY_EXPONENT else value
        return found

    def holds(self, config: KernelConfig) -> bool:
        """Whether a trial can become ``config``."""
        return all(_contains(self.distributions[name], value) for name, value in self.params(config).items())

    def neighbours(self, config: KernelConfig) -> list[KernelConfig]:
        """Configurations one declared step away in one knob, in the order of the knobs."""
        found: list[KernelConfig] = []
        for knob in self._knobs:
            point = point_of(config)
            if knob.name not in point:
                continue
            for value in self._steps(knob, point[knob.name]):
                other = config_at({**point, knob.name: value})
                if other not in found and other != config and self.holds(other):
                    found.append(other)
        return found

    def _steps(self, knob: Knob, value: Any) -> list[Any]:
        if not knob.ordered:
            return [other for other in self._values[knob.name] if other != value]
        below = [other for other in knob.values if other < value]
        above = [other for other in knob.values if other > value]
        return [*below[-1:], *above[:1]]


def _limited(knob: Knob, values: Mapping[str, tuple[Any, ...]]) -> Knob:
    """To ``values``; to its default where they do not name it."""
    return replace(knob, values=values.get(knob.name, (knob.default,)))


def parameter_name(knob: Knob) -> str:
    return f"{_LOG2}{knob.name}" if knob.name in _BY_EXPONENT else knob.name


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution)
    return bool(distribution.low <= value <= distribution.high)


def _integers(knob: Knob, high: int) -> IntDistribution:
    low = min(knob.values)
    if knob.name in _BY_EXPONENT:
        return IntDistribution(low.bit_length() - 1, high.bit_length() - 1)
    return IntDistribution(low, high, log=knob.name == "num_splits")


def _highest(knob: Knob, spec: AttentionSpec, profile: DeviceProfile) -> int:
    """The highest value of an ordered knob that may be of use."""
    highest: int = max(knob.values)
    if knob.name == "num_splits":
        # Between and beyond the declared values too, where none were left out on purpose.
        declared = next(known.values for known in KNOBS if known.name == knob.name)
        return min(MAX_SPLITS if knob.values == declared else highest, most_splits(spec, profile))
    return min(highest, max(min(knob.values), bucket(spec.kv_len))) if knob.name == "block_kv" else highest


def _allowed(knob: Knob, spec: AttentionSpec, profile: DeviceProfile) -> tuple[Any, ...]:
    if knob.ordered:
        return knob.values
    depth = 1 if knob.name == "prefetch_kind" else 0

    def possible(value: Any) -> bool:
        field = _ENUMS[knob.name](value) if knob.name in _ENUMS else value
        probes = (replace(probe, prefetch_depth=depth, **{knob.name: field}) for probe in _PROBES)
        return any(why_inadmissible(spec, probe, profile) is None for probe in probes)

    return tuple(value for value in knob.values if possible(value)) or (knob.default,)
