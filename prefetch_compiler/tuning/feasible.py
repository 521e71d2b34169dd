"""Which configurations are worth a trial: by arithmetic, and then by what their compiled kernels take.

Beyond admissibility (``select.admissible``: it can run) there is usefulness: points that only repeat what another point
does, or that cannot be fast, are left out with the reason. The heuristic's own configuration always passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..config import KernelConfig, Partition
from ..database.key import TuningKey
from ..device import DeviceProfile
from ..errors import InadmissibleConfigError
from ..lower.precompile import CompiledKernel
from ..select.admissible import why_inadmissible
from ..select.footprint import MIN_DOT_ROWS, programs_before_splitting
from ..select.heuristic import choose
from ..spec import AttentionSpec

# Splitting is for filling the device. An SM holds 16 to 32 programs at most; splits beyond that only queue, each with
# a partial result to write and to merge.
MAX_SPLIT_PROGRAMS_PER_SM = 16
# Streamed programs have equal work: those that do not run from the start would make the launch as long again.
MAX_STREAMED_PROGRAMS_PER_SM = 4
# 16 registers out and back, of a thread's 255 (bytes stored plus bytes loaded): the compiler takes as much for values
# that live across the loop. What spills more does so inside it.
SPILL_LIMIT_BYTES = 128


def tiles_of(capacity: int, block_kv: int) -> int:
    return max(1, -(-capacity // block_kv))


def most_splits(spec: AttentionSpec, profile: DeviceProfile) -> int:
    """The largest number of splits that may be useful with any block size and partition."""
    streamed = (False, True) if is_streamable(spec) else (False,)
    return max(1, *(min(_filling(spec, profile, one), _tiles(spec, MIN_DOT_ROWS, one)) for one in streamed))


def is_streamable(spec: AttentionSpec) -> bool:
    """Whether a template has streamed programs for ``spec``, and there is more than one sequence to stream."""
    return spec.batch > 1 and spec.cache is None and not spec.rope_dim


def _filling(spec: AttentionSpec, profile: DeviceProfile, streamed: bool) -> int:
    """Splits that give each SM as many programs as may be useful."""
    per_sm = MAX_STREAMED_PROGRAMS_PER_SM if streamed else MAX_SPLIT_PROGRAMS_PER_SM
    return per_sm * max(1, profile.sm_count) // programs_before_splitting(spec, streamed)


def _tiles(spec: AttentionSpec, block_kv: int, streamed: bool) -> int:
    """Tiles that splits share."""
    return tiles_of(spec.kv_len, block_kv) * (spec.batch if streamed else 1)


def why_infeasible(key: TuningKey, config: KernelConfig, profile: DeviceProfile) -> str | None:
    """The reason why ``config`` is not worth compiling for ``key``, or None."""
    return why_spec_infeasible(key.spec(), config, profile)


def why_spec_infeasible(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> str | None:
    """As :func:`why_infeasible`, for a key's spec that is at hand."""
    if config == _default(spec, profile):
        return None
    return why_inadmissible(spec, config, profile) or _why_useless(spec, config, profile)


@lru_cache(maxsize=64)
def _default(spec: AttentionSpec, profile: DeviceProfile) -> KernelConfig | None:
    try:
        return choose(spec, profile)
    except InadmissibleConfigError:
        return None


def _why_useless(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> str | None:
    capacity, block_kv, splits = spec.kv_len, config.block_kv, config.num_splits
    if block_kv > MIN_DOT_ROWS and block_kv >= 2 * capacity:
        return f"tiles of {block_kv} keys are at least half empty at a capacity of {capacity}"
    streamed = config.streams
    tiles = _tiles(spec, block_kv, streamed)
    if splits > tiles:
        return f"{splits} splits share {tiles} tiles"
    if (streamed or config.partition is Partition.BALANCED) and spec.batch == 1:
        return "there is nothing to balance in a batch of one sequence"
    if splits > 1 and splits > _filling(spec, profile, streamed):
        return (
            f"{programs_before_splitting(spec, streamed)} programs in {splits} splits each are more than "
            f"{MAX_STREAMED_PROGRAMS_PER_SM if streamed else MAX_SPLIT_PROGRAMS_PER_SM} for each of "
            f"{profile.sm_count} SMs"
        )
    share = -(-tiles // splits)
    if config.prefetch_depth >= share and config.prefetch_depth > 0:
        return f"nothing lies {config.prefetch_depth} tiles ahead in a share of {share}"
    return None


def spill_limit(default: Sequence[CompiledKernel]) -> int:
    """Bytes that a kernel may spill: the stated limit, or what the default itself spills where that is more."""
    return max([SPILL_LIMIT_BYTES, *(kernel.spill_bytes or 0 for kernel in default)])


def why_too_large(kernels: Sequence[CompiledKernel], profile: DeviceProfile, spill_bytes: int) -> str | None:
    """The reason why compiled kernels are not worth running, or None. ``spill_bytes`` is the limit."""
    for kernel in kernels:
        if kernel.shared_bytes > profile.shared_memory_bytes:
            return (
                f"{kernel.name} takes {kernel.shared_bytes} bytes of shared memory and {profile.name} has "
                f"{profile.shared_memory_bytes}"
            )
        if kernel.spill_bytes is not None and kernel.spill_bytes > spill_bytes:
            return f"{kernel.name} spills {kernel.spill_bytes} bytes a thread; the limit is {spill_bytes}"
    return None
