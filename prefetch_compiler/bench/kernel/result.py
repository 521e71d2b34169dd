"""The outcome of a run as data, its ratios, and its way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidResultError
from ..samples import Samples
from .cases import Case
from .oracle import Correctness

FORMAT = 1
OUR_FAMILY = "kvprefetch"
HEURISTIC, SHIPPED, DETERMINISTIC = "kvprefetch heuristic", "kvprefetch shipped", "kvprefetch deterministic"
BEST_BARE, BEST_PREFETCHING = "kvprefetch best depth 0", "kvprefetch best depth > 0"
OURS = (SHIPPED, HEURISTIC, DETERMINISTIC, BEST_BARE, BEST_PREFETCHING)


class Status(str, Enum):
    """What became of a peer in a case. Only ``measured`` is ranked; the others have a reason."""

    MEASURED = "measured"
    WRONG = "wrong"  # measured, and its output is not right
    UNSUPPORTED = "unsupported"  # does not take such a case
    UNAVAILABLE = "unavailable"  # not installed, or cannot be loaded here
    FAILED = "failed"


@dataclass
class PeerResult:
    """One peer in one case; ``samples`` are microseconds per launch. Of ours, ``config`` says which configuration ran
    and ``verdict`` how it was chosen."""

    name: str
    family: str
    status: Status
    reason: str = ""
    config: str | None = None
    verdict: str | None = None
    correctness: Correctness | None = None
    samples: Samples = field(default_factory=Samples)

    @property
    def is_ours(self) -> bool:
        return self.family == OUR_FAMILY

    @property
    def ranked_us(self) -> float | None:
        """The median, of a result that counts."""
        return self.samples.median_us if self.status is Status.MEASURED and self.samples.samples_us else None


@dataclass(frozen=True)
class ShapeTime:
    """One launch shape of the reading kernel, and its median."""

    shape: str
    median_us: float


@dataclass
class CaseCeiling:
    """The fastest of many kernels that only read, over as many bytes as the case must read.

    Attributes:
        shape: its launch shape.
        samples: microseconds per launch, in the rounds of everyone else.
        shapes: all that were tried, the fastest first; none in results that were measured apart from the contestants.
        first_us: of the ceiling that ``first_beaten_by`` was faster than, where there was one: the ceiling was then
            measured again, with more shapes.
        rival: samples of ``first_beaten_by`` in the rounds of the second measurement.
    """

    time_us: float
    tb_per_s: float
    region_bytes: int
    shape: str
    samples: Samples = field(default_factory=Samples)
    shapes: list[ShapeTime] = field(default_factory=list)
    first_us: float | None = None
    first_beaten_by: str = ""
    rival: Samples = field(default_factory=Samples)

    def is_beaten_by(self, samples: Samples) -> bool:
        """Whether ``samples`` are faster by more than noise: four in five of them below four in five of these."""
        return samples.quantile_us(0.8) < self.samples.quantile_us(0.2)


@dataclass
class CaseResult:
    """One case. ``valid_bytes`` of K and V must be read, ``caches`` were gone through in turn; ``shortest`` and
    ``longest`` are the keys that sequences hold."""

    case: Case
    valid_bytes: int
    capacity_bytes: int
    caches: int
    shortest: int
    longest: int
    ceiling: CaseCeiling
    peers: list[PeerResult]
    seconds: float = 0.0

    def of(self, name: str) -> PeerResult | None:
        return next((peer for peer in self.peers if peer.name == name), None)

    def time_us(self, name: str) -> float | None:
        """Median of a result that counts; None otherwise."""
        found = self.of(name)
        return None if found is None else found.ranked_us

    @property
    def best_peer(self) -> PeerResult | None:
        """The fastest that is right and not ours."""
        return _fastest([peer for peer in self.peers if not peer.is_ours])

    @property
    def best_of_ours(self) -> PeerResult | None:
        return _fastest([peer for peer in self.peers if peer.is_ours])

    @property
    def fastest(self) -> PeerResult | None:
        """Of everyone that is right."""
        return _fastest(self.peers)

    @property
    def ceiling_beaten_by(self) -> PeerResult | None:
        """Who is faster than the read ceiling by more than noise, which then is none."""
        found = self.fastest
        return found if found is not None and self.ceiling.is_beaten_by(found.samples) else None

    def ceiling_share(self, name: str) -> float | None:
        """The read ceiling's time over that of ``name``: 1 is as fast as reading. None where somebody beat it."""
        own = self.time_us(name)
        return None if own is None or self.ceiling_beaten_by is not None else self.ceiling.time_us / own

    def faster_than_best_peer(self, name: str) -> float | None:
        """The best peer's time over that of ``name``: above 1, ``name`` is faster."""
        own, best = self.time_us(name), self.best_peer
        return None if own is None or best is None or best.ranked_us is None else best.ranked_us / own


def _fastest(results: list[PeerResult]) -> PeerResult | None:
    timed = [(result.ranked_us, result) for result in results if result.ranked_us is not None]
    return min(timed, key=lambda pair: pair[0])[1] if timed else None


@dataclass(frozen=True)
class Availability:
    """One peer on this machine; ``reason`` is why it cannot be used, None where it can."""

    name: str
    family: str
    reason: str | None


@dataclass(frozen=True)
class NotRun:
    """A case that was asked for and not measured."""

    case: Case
    reason: str


@dataclass
class KernelRun:
    """A whole run. ``settings`` are what was asked for, seed included."""

    settings: dict[str, Any]
    environment: dict[str, str | None]
    availability: list[Availability]
    cases: list[CaseResult] = field(default_factory=list)
    not_run: list[NotRun] = field(default_factory=list)
    format: int = FORMAT

    @property
    def sweep(self) -> str | None:
        """The size that the run sweeps, if it does."""
        found = self.settings.get("sweep")
        return found if isinstance(found, str) else None

    @property
    def families(self) -> list[str]:
        """Families of peers with a result that counts; ours is none of them."""
        ranked = (peer for case in self.cases for peer in case.peers if peer.ranked_us is not None)
        return list(dict.fromkeys(peer.family for peer in ranked if not peer.is_ours))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: raw samples, with their quantiles and the ratios worked out beside them."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for case, written in zip(self.cases, plain["cases"], strict=True):
            written["name"] = case.case.name
            written["ceiling"]["samples"] = case.ceiling.samples.to_dict()
            written["ceiling"]["rival"] = case.ceiling.rival.to_dict()
            beaten_by = case.ceiling_beaten_by
            written["ceiling"]["beaten_by"] = None if beaten_by is None else beaten_by.name
            best = case.best_peer
            written["best_peer"] = None if best is None else best.name
            for peer, entry in zip(case.peers, written["peers"], strict=True):
                entry["samples"] = peer.samples.to_dict()
                entry["ceiling_share"] = case.ceiling_share(peer.name)
                entry["faster_than_best_peer"] = case.faster_than_best_peer(peer.name) if peer.is_ours else None
        return plain

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


def read_run(path: Path) -> KernelRun:
    """What :meth:`KernelRun.write` wrote.

    Raises:
        InvalidResultError: it cannot be read, or holds something else.
    """
    try:
        run = msgspec.json.decode(path.read_bytes(), type=KernelRun)
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidResultError(path, "bench kernel", str(error)) from error
    if run.format != FORMAT:
        raise InvalidResultError(path, "bench kernel", f"format {run.format} is not {FORMAT}")
    return run
