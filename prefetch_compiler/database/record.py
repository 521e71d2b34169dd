"""TuningRecord: key + config + evidence. Plain data; times are microseconds, sizes bytes.

A record's identity is its key, its template and what compiled it (:attr:`TuningRecord.identity`). Two records of one
identity are rivals, of which the better evidenced stays (``merge``); records of one key that differ in template source
or Triton minor version stand side by side, and lookup takes the fresh one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import KernelConfig
from .key import TuningKey


@dataclass(frozen=True)
class Timing:
    """A weighted time over fill levels: median and 20th and 80th percentile, in microseconds per launch."""

    median_us: float
    p20_us: float
    p80_us: float


@dataclass(frozen=True)
class FillTiming:
    """One fill level: keys held by a sequence on average, KV bytes that a launch must read, its median time, and the
    time of a read-only kernel over as many bytes (0 where the ceiling was not measured)."""

    held: int
    kv_bytes: int
    median_us: float
    ceiling_us: float


@dataclass(frozen=True)
class Rival:
    """A configuration that the winner was measured against, interleaved, in the same run."""

    config: KernelConfig
    timing: Timing


@dataclass(frozen=True)
class Measurement:
    """What the winner showed on the device. ``default`` is the heuristic's configuration, ``best_depth0`` the best
    found without any prefetch; either may be the winner itself. ``error`` is the largest error over its bound (at most
    1) on held-out seeds."""

    timing: Timing
    default: Rival
    best_depth0: Rival
    fills: tuple[FillTiming, ...]
    ceiling_share: float
    error: float


@dataclass(frozen=True)
class Toolchain:
    """What a record depends on beside the device. ``template_hash`` covers all of its kernels, as the
    record's key uses them (database/template_hash.py)."""

    template: str
    template_hash: str
    torch: str
    triton: str
    driver: str

    @property
    def triton_minor(self) -> str:
        """``3.6`` of ``3.6.0+git1234``."""
        return ".".join(self.triton.split(".")[:2])


@dataclass(frozen=True)
class Evidence:
    """How a record came about. ``measurement`` is None when it was ranked by a model of the device and never ran there:
    such a record is ``unmeasured``, and ``modelled_us`` is the model's estimate."""

    toolchain: Toolchain
    trials: int
    seed: int
    date: str
    measurement: Measurement | None = None
    modelled_us: float | None = None


@dataclass(frozen=True)
class TuningRecord:
    key: TuningKey
    config: KernelConfig
    evidence: Evidence

    @property
    def measured(self) -> bool:
        return self.evidence.measurement is not None

    @property
    def identity(self) -> tuple[TuningKey, str, str, str]:
        toolchain = self.evidence.toolchain
        return self.key, toolchain.template, toolchain.template_hash, toolchain.triton_minor


@dataclass(frozen=True)
class DeviceIdentity:
    """The GPU model that records were measured on. All four must agree: an H100 is no H200."""

    name: str
    backend: str
    arch: int
    sm_count: int
