"""Attention over quantised caches beside the same attention over a cache of the queries' dtype, on this GPU.

Each cache runs under the configuration that a model would get here, is verified first, and is timed as tuning times a
finalist: under a CUDA graph, with a cold L2 and a full cache. The caches take their turns one after the other, the
unquantised one again at the end, so that a clock that drifts shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..config import KernelConfig
from ..database.key import TuningKey
from ..database.overlay import load
from ..database.record import FillTiming
from ..device import profile
from ..select.selection import select
from ..tuning.ceilings import Ceilings
from ..tuning.session import Session
from ..tuning.verification import forget_checks, verify
from .ceiling import measure_ceiling

_SEED = 0


@dataclass(frozen=True)
class CacheTime:
    """One cache, full: ``error_share`` is the largest error over its bound, ``ceiling_us`` what reading the same bytes
    takes at best."""

    key: str
    config: str
    verdict: str
    kv_bytes: int
    median_us: float
    ceiling_us: float
    error_share: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CacheComparison:
    """``plain`` is the cache of the queries' dtype, ``again`` the same at the end."""

    plain: CacheTime
    quantised: tuple[CacheTime, ...]
    again: CacheTime

    @property
    def plain_us(self) -> float:
        return statistics.fmean((self.plain.median_us, self.again.median_us))

    def speedup(self, time: CacheTime) -> float:
        return self.plain_us / time.median_us

    def to_dict(self) -> dict[str, Any]:
        rows = [row.to_dict() | {"speedup": self.speedup(row)} for row in self.quantised]
        return {"plain": self.plain.to_dict(), "quantised": rows, "again": self.again.to_dict()}


def compare_caches(
    plain: TuningKey, quantised: Sequence[TuningKey], device: torch.device, say: Callable[[str], None]
) -> CacheComparison:
    """Time ``plain`` and the keys that differ from it in their caches.

    Raises:
        WrongResultError: a kernel's results are wrong.
        KeyTooLargeError: a cache does not fit.
        Refused, InadmissibleConfigError: no kernel serves a key here.
    """
    ceilings = Ceilings(lambda byte_count: measure_ceiling(byte_count, device).samples.median_us)
    times = []
    for key in (plain, *quantised, plain):
        say(key.name)
        times.append(_timed(key, device, ceilings))
    return CacheComparison(times[0], tuple(times[1:-1]), times[-1])


def _timed(key: TuningKey, device: torch.device, ceilings: Ceilings) -> CacheTime:
    chosen = select(key.spec(), profile(device), load())
    error = verify(key, chosen.config, _SEED, device)
    forget_checks()
    torch.cuda.empty_cache()
    full = _full(key, chosen.config, device, ceilings, error)
    torch.cuda.empty_cache()
    config, verdict = chosen.config.encode(), chosen.verdict.value
    return CacheTime(key.name, config, verdict, full.kv_bytes, full.median_us, full.ceiling_us, error)


def _full(key: TuningKey, config: KernelConfig, device: torch.device, ceilings: Ceilings, error: float) -> FillTiming:
    (result,) = Session(key, device, ceilings, _SEED).finals([config], [error])
    return result.fills[-1]
