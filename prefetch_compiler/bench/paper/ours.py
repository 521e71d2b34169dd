"""Which configurations our own kernel runs a case with: what is on record for it, else a small search on the spot.

A record counts when it was tuned for the case as it is measured: full caches, no mask. Those of static caches, whose
sites have a mask, are where the search starts, beside the heuristic's choice and its variants. The search then tries
prefetching at the best configuration found, and the neighbours of the best. Its times only choose: the choice is
measured again beside everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from prefetch_compiler.templates.manifest import SPLIT_KV

from ...config import KernelConfig, PrefetchKind
from ...database.key import key_of
from ...database.overlay import Overlays
from ...device import DeviceProfile
from ...report import Verdict
from ...select.heuristic import choose
from ...select.lookup import Found, lookup
from ...spec import AttentionSpec, MaskKind
from ...tuning.distributions import SearchSpace
from ...tuning.feasible import why_spec_infeasible
from ...tuning.seeds import seeds_for

# Prefetching that is tried at the best configuration without.
_PREFETCHES = ((1, PrefetchKind.BULK), (2, PrefetchKind.BULK), (1, PrefetchKind.LINE))
# Configurations that are measured beside each other.
_AT_ONCE = 4

# Microseconds of each configuration, None for one that does not run or is wrong.
TimeConfigs = Callable[[Sequence[KernelConfig]], list[float | None]]


@dataclass(frozen=True)
class Choice:
    """A configuration; ``source`` says for people where it came from."""

    config: KernelConfig
    source: str


@dataclass(frozen=True)
class OurConfigs:
    """The best without prefetch, and the best of all, which may be the same."""

    depth0: Choice
    free: Choice


def choose_ours(
    spec: AttentionSpec, profile: DeviceProfile, databases: Overlays, trials: int, time_configs: TimeConfigs
) -> OurConfigs:
    """What to measure ``spec`` with. ``trials`` bounds the search; with 0 the best starting point is taken untried."""
    found = lookup(spec, profile, SPLIT_KV.name, databases)
    if isinstance(found, Found):
        return on_record(found)
    starts = starting_points(spec, profile, databases)
    if trials == 0:
        return _alone(starts[0])
    return search(spec, profile, starts, trials, time_configs)


def likely_configs(spec: AttentionSpec, profile: DeviceProfile, databases: Overlays) -> Iterator[KernelConfig]:
    """What a search over ``spec`` tries before it has learnt anything: worth compiling ahead."""
    if isinstance(lookup(spec, profile, SPLIT_KV.name, databases), Found):
        return
    for start in starting_points(spec, profile, databases):
        yield start.config
        yield from _prefetching(start.config, spec, profile)


def on_record(found: Found) -> OurConfigs:
    """The record's configuration, and the best without prefetch that its study found."""
    free = Choice(found.config, found.reason)
    measurement = found.record.evidence.measurement
    if not found.config.prefetches:
        return OurConfigs(free, free)
    if measurement is None or found.verdict is not Verdict.EXACT:
        return OurConfigs(_without_prefetch(free), free)
    return OurConfigs(
        Choice(measurement.best_depth0.config, f"best without prefetch of the record {found.reason}"), free
    )


def _without_prefetch(choice: Choice) -> Choice:
    return Choice(choice.config.without_prefetch(), f"without its prefetch: {choice.source}")


def _alone(start: Choice) -> OurConfigs:
    bare = start if not start.config.prefetches else _without_prefetch(start)
    return OurConfigs(bare, start)


def starting_points(spec: AttentionSpec, profile: DeviceProfile, databases: Overlays) -> list[Choice]:
    """Where the search starts, the most promising first, each configuration once and without prefetch."""
    masked = replace(spec, mask=MaskKind.BOOL, mask_dtype=torch.bool)
    found = lookup(masked, profile, SPLIT_KV.name, databases)
    starts = [Choice(found.config, f"the record of masked caches, {found.reason}")] if isinstance(found, Found) else []
    starts.append(Choice(choose(spec, profile), "the heuristic's"))
    starts += [Choice(seed.config, seed.source) for seed in seeds_for(key_of(spec), profile)]
    known: dict[KernelConfig, Choice] = {}
    for start in starts:
        bare = start if not start.config.prefetches else _without_prefetch(start)
        known.setdefault(bare.config, bare)
    return list(known.values())


def search(
    spec: AttentionSpec, profile: DeviceProfile, starts: Sequence[Choice], trials: int, time_configs: TimeConfigs
) -> OurConfigs:
    """At most ``trials`` configurations: the starting points, then prefetching at the best of them, then neighbours of
    the best. When none of them runs, the first starting point is returned, for its failure to be seen."""
    sources = {start.config: start.source for start in starts}
    times: dict[KernelConfig, float] = {}
    tried: set[KernelConfig] = set()

    def attempt(configs: Iterator[KernelConfig], most: int) -> bool:
        """Whether anything was left to try."""
        fresh = list(islice((config for config in configs if config not in tried), min(most, trials - len(tried))))
        tried.update(fresh)
        for config, taken in zip(fresh, time_configs(fresh) if fresh else [], strict=True):
            if taken is not None:
                times[config] = taken
        return bool(fresh)

    def best(configs: Iterator[KernelConfig]) -> KernelConfig | None:
        return min(configs, key=times.__getitem__, default=None)

    attempt(iter([start.config for start in starts]), trials)
    first = best(iter(times))
    if first is None:
        return _alone(starts[0])
    attempt(_prefetching(first, spec, profile), trials)
    space = SearchSpace(key_of(spec), profile, list(times))
    while attempt(_around(best(iter(times)) or first, space, spec, profile), _AT_ONCE):
        pass
    return OurConfigs(
        *(
            Choice(config, f"best of {len(tried)} tried: {sources.get(config, 'found by the search')}")
            for config in (
                best(config for config in times if not config.prefetches) or first,
                best(iter(times)) or first,
            )
        )
    )


def _prefetching(config: KernelConfig, spec: AttentionSpec, profile: DeviceProfile) -> Iterator[KernelConfig]:
    variants = (replace(config, prefetch_depth=depth, prefetch_kind=kind) for depth, kind in _PREFETCHES)
    return (variant for variant in variants if why_spec_infeasible(spec, variant, profile) is None)


def _around(
    config: KernelConfig, space: SearchSpace, spec: AttentionSpec, profile: DeviceProfile
) -> Iterator[KernelConfig]:
    return (other for other in space.neighbours(config) if why_spec_infeasible(spec, other, profile) is None)
