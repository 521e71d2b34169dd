"""Plausible databases and studies to make pages of: nothing here was measured."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, PrefetchKind
from prefetch_compiler.database.document import Database
from prefetch_compiler.database.key import TuningKey
from prefetch_compiler.database.record import (
    DeviceIdentity,
    Evidence,
    FillTiming,
    Measurement,
    Rival,
    Timing,
    Toolchain,
    TuningRecord,
)
from prefetch_compiler.tuning.job import JobSettings, tune_keys
from prefetch_compiler.tuning.presets import PRESETS, presets_keys
from prefetch_compiler.tuning.protocol import FailureKind
from prefetch_compiler.tuning.storage import open_storage

from .fakes import H200, TOOLCHAIN, FakeMeasurer, plausible_us

DEVICE = DeviceIdentity("NVIDIA H200", "cuda", 90, 132)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CAPACITIES = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
LAUNCH_US, BYTES_PER_US = 2.2, 4.7e6
FILLS = (0.125, 0.5, 1.0)


def keys(presets: Sequence[str] = tuple(PRESETS), most_bytes: int = 90 << 30) -> list[TuningKey]:
    """Every bucket of the shipped grid that fits a device."""
    found = presets_keys(presets, BATCHES, CAPACITIES, ("bfloat16", "float16"))
    return [key for key in found if key.spec().capacity_bytes < most_bytes]


def database(count: int | None = None, seed: int = 0, unmeasured: int = 0, device: DeviceIdentity = DEVICE) -> Database:
    """``count`` records, of all presets; the last ``unmeasured`` of them come from a model."""
    generator = random.Random(seed)
    chosen = keys()
    if count is not None:
        chosen = sorted(generator.sample(chosen, count))
    records = [record(key, generator) for key in chosen]
    for at in range(len(records) - unmeasured, len(records)):
        measured = records[at].evidence.measurement
        assert measured is not None
        modelled = replace(records[at].evidence, measurement=None, modelled_us=measured.timing.median_us)
        records[at] = replace(records[at], evidence=modelled)
    return Database(device, tuple(records), family_fallback=True)


def record(key: TuningKey, generator: random.Random, toolchain: Toolchain = TOOLCHAIN) -> TuningRecord:
    """Large caches come near the ceiling without prefetch; small ones gain from it now and then."""
    spec = key.spec()
    size = spec.capacity_bytes
    fills = []
    efficiency = 0.55 + 0.42 / (1 + (3e6 / size) ** 0.6) - abs(generator.gauss(0, 0.02))
    for share in FILLS:
        kv_bytes = round(size * share)
        ceiling_us = LAUNCH_US + kv_bytes / BYTES_PER_US
        fills.append(
            FillTiming(max(1, round(key.capacity_bucket * share)), kv_bytes, ceiling_us / efficiency, ceiling_us)
        )
    median = sum(fill.median_us for fill in fills) / len(fills)
    small = size < 200e6
    depth = generator.choice((0, 0, 1, 1, 2, 3)) if small else generator.choice((0,) * 8 + (1, 2))
    gain0 = 1.0 if depth == 0 else 1 + abs(generator.gauss(0.03 if small else 0.005, 0.03 if small else 0.004))
    gain = gain0 * (1 + abs(generator.gauss(0.04, 0.05)))
    programs = spec.batch * spec.kv_heads
    splits = max(1, min(64, round(132 * 2 / programs)))
    config = KernelConfig(
        block_kv=generator.choice((64, 128)),
        num_splits=splits,
        num_warps=generator.choice((4, 4, 8)),
        num_stages=generator.choice((2, 3, 4)),
        prefetch_depth=depth,
        prefetch_kind=generator.choice(tuple(PrefetchKind)) if depth else PrefetchKind.LINE,
        load_path=LoadPath.TMA if size > 100e6 else LoadPath.POINTER,
        launch_overlap=small,
        merge=Merge.SEPARATE,
    )
    bare = replace(config, prefetch_depth=0, prefetch_kind=PrefetchKind.LINE)
    measurement = Measurement(
        timing=_timing(median),
        default=Rival(KernelConfig(64, max(1, splits // 2), 4, 2), _timing(median * gain)),
        best_depth0=Rival(bare, _timing(median * gain0)),
        fills=tuple(fills),
        ceiling_share=efficiency,
        error=generator.uniform(0.1, 0.6),
    )
    day = 1 + math.floor(generator.random() * 20)
    return TuningRecord(key, config, Evidence(toolchain, 64, 0, f"2026-03-{day:02d}T10:00:00Z", measurement))


def _timing(median_us: float) -> Timing:
    return Timing(median_us, median_us * 0.99, median_us * 1.02)


def tuned(folder: Path, keys: Sequence[TuningKey], trials: int = 64) -> tuple[Path, Path]:
    """A database and an SQLite file of studies as the job writes them, from a measurer that makes its times up."""

    def times(key: TuningKey, config: KernelConfig) -> float | FailureKind:
        if config.num_stages == 6 and config.block_kv == 256:
            return FailureKind.CRASH if config.num_warps == 8 else FailureKind.OUT_OF_MEMORY
        depth = config.prefetch_depth
        return plausible_us(key, config) * (1 + 0.03 * abs(depth - (2 if key.batch_bucket == 1 else 0)))

    storage = folder / "studies.db"
    result = tune_keys(
        list(keys),
        FakeMeasurer(times, noise=0.01),
        profile=H200,
        toolchain=lambda key, config: TOOLCHAIN,
        storage=open_storage(str(storage)),
        out=folder,
        settings=JobSettings(trials=trials, seed=0),
    )
    return result.path, storage
