"""What a tuning job says while it runs: plain data, for a progress display or for machines (JSON lines)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, ClassVar


class Ending(str, Enum):
    """How the work on a key ended."""

    TUNED = "tuned"  # a configuration beat the default by more than the noise
    DEFAULT = "default"  # none did: the default is the record
    MODELLED = "modelled"  # ranked by the model, not measured
    KNOWN = "known"  # an earlier run has published it already
    ELSEWHERE = "elsewhere"  # another worker has settled it
    FAILED = "failed"  # there is no record


@dataclass(frozen=True)
class Event:
    """Times are microseconds per launch, unless named otherwise."""

    name: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        fields = {k: v.value if isinstance(v, Enum) else v for k, v in asdict(self).items()}
        return {"event": self.name, **fields}


@dataclass(frozen=True)
class JobStarted(Event):
    name: ClassVar[str] = "job_started"
    device: str
    keys: int
    trials: int
    sampler: str


@dataclass(frozen=True)
class KeyStarted(Event):
    """``known`` trials were measured by earlier runs or other workers."""

    name: ClassVar[str] = "key_started"
    key: str
    number: int
    keys: int
    default: str
    known: int


@dataclass(frozen=True)
class TrialFinished(Event):
    """``trial`` of ``trials`` are paid for. ``gb_per_s`` and ``ceiling_share`` are of the best so far."""

    name: ClassVar[str] = "trial"
    key: str
    trial: int
    trials: int
    config: str
    objective_us: float | None
    failure: str | None
    detail: str
    best: str | None
    best_us: float | None
    gb_per_s: float | None
    ceiling_share: float | None
    eta_s: float | None


@dataclass(frozen=True)
class KeyFinished(Event):
    """``default_us`` and ``depth0_us`` were measured in the same interleaved rounds as ``time_us``."""

    name: ClassVar[str] = "key_finished"
    key: str
    ending: Ending
    reason: str
    trials: int
    seconds: float
    config: str | None = None
    time_us: float | None = None
    default_us: float | None = None
    depth0_us: float | None = None
    gb_per_s: float | None = None
    ceiling_share: float | None = None

    @property
    def gain(self) -> float | None:
        """Times faster than the default."""
        return self.default_us / self.time_us if self.default_us and self.time_us else None

    @property
    def depth0_gain(self) -> float | None:
        """Times faster than the best without any prefetch."""
        return self.depth0_us / self.time_us if self.depth0_us and self.time_us else None


@dataclass(frozen=True)
class JobFinished(Event):
    """Gains are geometric means over the keys that were measured; None where there are none."""

    name: ClassVar[str] = "job_finished"
    database: str
    records: int
    failed: int
    seconds: float
    gain: float | None
    depth0_gain: float | None


Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """Report nothing."""
