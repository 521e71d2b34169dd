"""How long a compiled configuration should take on a GPU that is not there: a model of four effects, no measurement.

1. *Occupancy.* An SM holds as many programs as its shared memory, registers, threads and slots allow.
2. *Little's law.* Bytes in flight on an SM are what its resident programs have asked for and not received: the tiles of
   the pipeline but the one computed, or the tiles asked into L2 where those are more. Bandwidth is reached when they
   cover bandwidth times latency; below that it falls in proportion.
3. *Balance.* Programs come in whole numbers an SM, and an SM without one is idle.
4. *Fixed costs.* A launch, one memory latency to begin with, and merging.

Good for ranking configurations that differ much, and for nothing else: a record made so is ``unmeasured``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import KernelConfig, Merge
from ..device import DeviceProfile
from ..lower.precompile import CompiledKernel
from ..select.footprint import kv_tile_bytes, programs_before_splitting
from ..spec import AttentionSpec
from .feasible import tiles_of

_KIB = 1024
# Round trip to device memory under load; published microbenchmarks of recent GPUs lie between 0.5 and 0.9 us.
LATENCY_US = 0.8
LAUNCH_US, OVERLAPPED_LAUNCH_US = 2.0, 1.0
SEPARATE_MERGE_US, OVERLAPPED_MERGE_US, INPLACE_MERGE_US = 2.0, 1.0, 3.5
# Of each program's shared memory, kept by the system.
RESERVED_SHARED_BYTES = 1 * _KIB


@dataclass(frozen=True)
class SmLimits:
    """What one SM holds (CUDA programming guide, "Compute Capabilities"), and the memory bandwidth of the GPU that
    stands for its architecture, in GB/s (the maker's figure)."""

    shared_bytes: int
    threads: int
    programs: int
    bandwidth_gb_per_s: float
    registers: int = 65_536


LIMITS = {
    80: SmLimits(164 * _KIB, 2048, 32, 2_039),
    86: SmLimits(100 * _KIB, 1536, 16, 600),
    89: SmLimits(100 * _KIB, 1536, 24, 864),
    90: SmLimits(228 * _KIB, 2048, 32, 4_800),
    100: SmLimits(228 * _KIB, 2048, 32, 8_000),
    120: SmLimits(100 * _KIB, 1536, 24, 1_792),
}


def limits_of(profile: DeviceProfile) -> SmLimits:
    """Those of the newest architecture that is not newer than the device's."""
    return LIMITS[max((arch for arch in LIMITS if arch <= profile.arch), default=min(LIMITS))]


def resident_programs(kernel: CompiledKernel, config: KernelConfig, limits: SmLimits) -> int:
    """Programs that one SM holds at a time; at least 1, for a kernel that fits."""
    threads = 32 * config.num_warps
    registers = -(-(kernel.registers or 255) // 8) * 8 * threads
    return max(
        1,
        min(
            limits.shared_bytes // (kernel.shared_bytes + RESERVED_SHARED_BYTES),
            limits.registers // registers,
            limits.threads // threads,
            limits.programs,
        ),
    )


def ceiling_us(kv_bytes: int, limits: SmLimits) -> float:
    """The time that reading takes at full bandwidth."""
    return kv_bytes / limits.bandwidth_gb_per_s / 1e3


def modelled_us(
    spec: AttentionSpec, config: KernelConfig, kernels: Sequence[CompiledKernel], profile: DeviceProfile, held: int
) -> float:
    """Microseconds of one launch over ``held`` keys in each sequence."""
    limits = limits_of(profile)
    sms = max(1, profile.sm_count)
    streamed = config.streams
    splits = min(config.num_splits, tiles_of(held, config.block_kv) * (spec.batch if streamed else 1))
    programs = programs_before_splitting(spec, streamed) * splits
    on_one_sm = min(resident_programs(kernels[0], config, limits), -(-programs // sms))
    tiles_ahead = max(config.num_stages - 1, config.prefetch_depth, 0.5)
    in_flight = on_one_sm * kv_tile_bytes(spec, config.block_kv) * tiles_ahead
    wanted = limits.bandwidth_gb_per_s * 1e3 * LATENCY_US / sms
    balance = programs / (sms * -(-programs // sms))
    reading = ceiling_us(spec.kv_bytes_per_key * held, limits) / (min(1.0, in_flight / wanted) * balance)
    launch = OVERLAPPED_LAUNCH_US if config.launch_overlap else LAUNCH_US
    return launch + LATENCY_US + reading + _merge_us(config)


def _merge_us(config: KernelConfig) -> float:
    if config.num_splits == 1:
        return 0.0
    if config.merge is Merge.INPLACE:
        return INPLACE_MERGE_US
    return OVERLAPPED_MERGE_US if config.launch_overlap else SEPARATE_MERGE_US
