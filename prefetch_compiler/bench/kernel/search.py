"""A small search around our own choices: the best configuration without prefetch, and the best with it.

From the configurations we would choose anyway it goes to neighbours (one knob one step, or another value of a knob
without order), always from the best seen so far, until it has measured as many as it may or nothing new is near. That
is no tuning: it shows, for every case alike, by how much our choice of a configuration could easily be better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ...config import KernelConfig, PrefetchKind
from ...space import KNOBS, Knob, config_at, point_of

# Depths that a configuration without prefetch is given first, in the search for the best with it.
FIRST_DEPTHS = (1, 2)
FIRST_KINDS = (PrefetchKind.LINE, PrefetchKind.BULK)

# Measures configurations, in order: microseconds, or None for one that cannot run or is wrong.
MeasureAll = Callable[[Sequence[KernelConfig]], Sequence[float | None]]
# Why a configuration is not worth measuring, or None.
WhyNot = Callable[[KernelConfig], str | None]


@dataclass(frozen=True)
class Found:
    """The best configuration of a search, its time in it, and how many were measured."""

    config: KernelConfig
    time_us: float
    measured: int


def search(starts: Iterable[KernelConfig], measure: MeasureAll, why_not: WhyNot, count: int) -> Found | None:
    """The fastest of at most ``count`` configurations. Prefetching or not is never changed on the way: all of
    ``starts`` must agree on it. None if nothing could be measured."""
    times: dict[KernelConfig, float | None] = {}
    starts = list(starts)
    # A prefetch of what no split has ahead of it makes no sense, but may with fewer splits or smaller tiles.
    around = (near for start in starts for near in neighbours(start))
    waiting = list(_fresh(starts, times, why_not)) or list(_fresh(around, times, why_not))
    while waiting and len(times) < count:
        batch = waiting[: count - len(times)]
        times.update(zip(batch, measure(batch), strict=True))
        waiting = list(_next(times, why_not))
    ranked = _ranked(times)
    return Found(ranked[0], times[ranked[0]] or 0.0, len(times)) if ranked else None


def _ranked(times: dict[KernelConfig, float | None]) -> list[KernelConfig]:
    """Measured configurations, the fastest first."""
    measured = {config: time for config, time in times.items() if time is not None}
    return sorted(measured, key=lambda config: measured[config])


def _next(times: dict[KernelConfig, float | None], why_not: WhyNot) -> Iterator[KernelConfig]:
    """New neighbours of the best, or of the next best where it has none."""
    for config in _ranked(times):
        fresh = list(_fresh(neighbours(config), times, why_not))
        if fresh:
            yield from fresh
            return


def _fresh(
    configs: Iterable[KernelConfig], seen: dict[KernelConfig, float | None], why_not: WhyNot
) -> Iterator[KernelConfig]:
    yield from (config for config in dict.fromkeys(configs) if config not in seen and why_not(config) is None)


def neighbours(config: KernelConfig) -> Iterator[KernelConfig]:
    """Configurations one step away that prefetch if ``config`` does, and do not if it does not."""
    point = point_of(config)
    for knob in KNOBS:
        if knob.name not in point:
            continue
        for value in _steps(knob, point[knob.name]):
            stepped = config_at({**point, knob.name: value})
            if stepped != config and stepped.prefetches == config.prefetches:
                yield stepped


def _steps(knob: Knob, value: object) -> list[object]:
    """The next value on either side of an ordered knob's; every other value of one without order."""
    others = [other for other in knob.values if other != value]
    if not knob.ordered:
        return others
    below, above = [one for one in others if one < value], [one for one in others if one > value]
    return [*below[-1:], *above[:1]]


def without_prefetch(configs: Iterable[KernelConfig]) -> list[KernelConfig]:
    """``configs`` without any prefetch, each once."""
    return list(dict.fromkeys(config.without_prefetch() for config in configs))


def with_prefetch(configs: Iterable[KernelConfig]) -> list[KernelConfig]:
    """``configs`` with prefetch: those that have it as they are, the others at the first depths, of either kind."""
    found: list[KernelConfig] = []
    for config in configs:
        if config.prefetches:
            found.append(config)
            continue
        found += [
            replace(config, prefetch_depth=depth, prefetch_kind=kind) for depth in FIRST_DEPTHS for kind in FIRST_KINDS
        ]
    return list(dict.fromkeys(found))
