"""A measurer that needs no GPU: times are a function of the configuration, with noise if wanted."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable
from pathlib import Path

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder
from prefetch_compiler.database.key import TuningKey, parse_key
from prefetch_compiler.database.record import FillTiming, Toolchain
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.select.footprint import kv_tile_bytes
from prefetch_compiler.tuning.protocol import (
    FailureKind,
    Outcome,
    TrialFailure,
    TrialRequest,
    TrialResult,
    fills_of,
)

H200 = REFERENCE_DEVICES[90]
KEY = parse_key("bfloat16 32q/8kv d128 q1 b4 s4096 bhsd-tma bool")
TOOLCHAIN = Toolchain("split_kv_decode", "0" * 64, "2.11.0", "3.6.0", "580.00")

Times = Callable[[TuningKey, KernelConfig], float | FailureKind]


def plausible_us(key: TuningKey, config: KernelConfig) -> float:
    """A smooth, made-up cost: too few bytes in flight, idle SMs, merging and large tiles all cost something."""
    spec = key.spec()
    programs = spec.batch * spec.kv_heads * config.num_splits
    in_flight = kv_tile_bytes(spec, config.block_kv) * config.num_stages * (1 + 0.1 * min(config.prefetch_depth, 2))
    resident = max(1, min(8, 200_000 // max(1, in_flight), programs // H200.sm_count + 1))
    supply = min(1.0, in_flight * resident / 60_000)
    waves = programs / H200.sm_count
    busy = waves / math.ceil(waves) if waves > 1 else waves
    bytes_us = spec.capacity_bytes / 4.0e6 / max(0.05, busy**0.5 * supply)
    merge_us = 0.0 if config.num_splits == 1 else (3.5 if config.merge is Merge.INPLACE else 1.5)
    detail = 1.0
    detail *= 1.04 if config.load_path is LoadPath.TMA and config.num_warps > 4 else 1.0
    detail *= 1.06 if config.operand_order is OperandOrder.KQ else 1.0
    detail *= 1.0 + 0.02 * abs(math.log2(config.num_warps) - 2)
    detail *= 1.0 + 0.01 * max(0, config.prefetch_depth - 2)
    return (2.0 + bytes_us + merge_us - (0.8 if config.launch_overlap else 0.0)) * detail


def rugged_us(key: TuningKey, config: KernelConfig) -> float:
    """The same, with up to 6 % that no rule explains on every combination of what decides a kernel's code."""
    code = (config.block_kv, config.num_warps, config.num_stages, config.load_path, config.operand_order)
    return plausible_us(key, config) * (1 + 0.06 * zlib.crc32(repr(code).encode()) / 2**32)


class FakeMeasurer:
    """Implements the measurer's protocol. ``log`` is appended to, one line a trial, whatever process writes."""

    def __init__(
        self,
        times: Times = plausible_us,
        *,
        noise: float = 0.0,
        rounds: int = 15,
        seed: int = 0,
        log: Path | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._times, self._noise, self._rounds = times, noise, rounds
        self._random = random.Random(seed)
        self._log, self._pause = log, pause
        self.trials: list[TrialRequest] = []
        self.final_seeds: list[int] = []

    def trial(self, request: TrialRequest) -> Outcome:
        self.trials.append(request)
        self._pause()
        if self._log is not None:
            with self._log.open("a") as log:
                log.write(f"{request.config.encode()}\n")
        return self._measure(request.key, request.config)

    def finals(self, key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> tuple[Outcome, ...]:
        self.final_seeds.append(seed)
        return tuple(self._measure(key, config) for config in configs)

    def close(self) -> None:
        return

    def _measure(self, key: TuningKey, config: KernelConfig) -> Outcome:
        time_us = self._times(key, config)
        if isinstance(time_us, FailureKind):
            return TrialFailure(time_us, "as the fixture says", 0.01)
        return result_of(key, [self._noisy(time_us) for _ in range(self._rounds)])

    def _noisy(self, time_us: float) -> float:
        return time_us * (1 + self._noise * self._random.gauss(0, 1)) if self._noise else time_us


def result_of(key: TuningKey, samples_us: list[float]) -> TrialResult:
    """The same samples at every fill level."""
    middle = sorted(samples_us)[len(samples_us) // 2]
    per_key = key.spec().kv_bytes_per_key
    helds = [max(1, round(fill * key.capacity_bucket)) for fill in fills_of(key)]
    fills = tuple(FillTiming(held, held * per_key, middle, middle / 2) for held in helds)
    return TrialResult(fills, tuple(tuple(samples_us) for _ in fills), 0.25)
