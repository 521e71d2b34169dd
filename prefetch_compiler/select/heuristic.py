"""A configuration that needs no database, from compute capability, SM count and the shape of the site.

Two regimes, by how many programs there are before splitting (one per sequence, KV head and tile of query rows):

- *few*: fewer than fill the GPU once. Each SM runs one program with large tiles and a deep pipeline, and the keys are
  split until every SM has one.
- *many*: small tiles and two warps, several programs on each SM; the hardware's own scheduling hides latency.

How full a cache is, is known on the device only, so splits come from the capacity's side: surplus programs leave at once.
docs/benchmarks.md has what each regime measures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import MAX_SPLITS, KernelConfig, LoadPath
from ..device import DeviceProfile
from ..errors import InadmissibleConfigError
from ..spec import AttentionSpec
from .admissible import why_inadmissible
from .footprint import padded_dim, row_tile, row_tiles

# A symbolic length grows without recompiling, so its hint says little: plan for a cache worth splitting.
PLANNED_SYMBOLIC_KV_LEN = 8192
MANY_PROGRAMS_PER_SM = 1.5
PROGRAMS_PER_SM_WHEN_MANY = 3


@dataclass(frozen=True)
class _Family:
    """What one GPU family wants in each regime. ``tile_bytes`` is one K tile plus one V tile."""

    few_tile_bytes: int
    few_warps: int
    few_stages: int
    many_tile_bytes: int
    many_warps: int
    many_stages: int


_KIB = 1024
_LARGE_SHARED_MEMORY = _Family(64 * _KIB, 4, 3, 32 * _KIB, 2, 2)  # sm_90, sm_100: measured on an H200
_MEDIUM_SHARED_MEMORY = _Family(32 * _KIB, 4, 3, 16 * _KIB, 4, 2)  # sm_80: 163 KB
_SMALL_SHARED_MEMORY = _Family(16 * _KIB, 4, 3, 16 * _KIB, 4, 2)  # sm_86, sm_89, sm_120: 99 KB
_CAUTIOUS = _Family(8 * _KIB, 4, 2, 8 * _KIB, 4, 2)  # anything else, AMD included: 64 KB
_INTERPRETED = _Family(64 * _KIB, 1, 1, 64 * _KIB, 1, 1)


def _family(profile: DeviceProfile) -> _Family:
    if profile.backend == "interpreter":
        return _INTERPRETED
    if profile.backend != "cuda":
        return _CAUTIOUS
    if profile.shared_memory_bytes >= 200 * _KIB:
        return _LARGE_SHARED_MEMORY
    if profile.shared_memory_bytes >= 150 * _KIB:
        return _MEDIUM_SHARED_MEMORY
    return _SMALL_SHARED_MEMORY if profile.shared_memory_bytes >= 96 * _KIB else _CAUTIOUS


def _block_kv(spec: AttentionSpec, tile_bytes: int) -> int:
    """The power of two whose K and V tiles come nearest to ``tile_bytes`` from below, within 16..128."""
    per_key = (padded_dim(spec.head_dim) + padded_dim(spec.value_dim)) * spec.element_bytes
    fits = max(1, tile_bytes // per_key)
    return min(128, max(16, 1 << (fits.bit_length() - 1)))


def _warps(spec: AttentionSpec, preferred: int) -> int:
    """More warps when many query rows share a KV head, so that their fp32 accumulator stays in registers."""
    accumulator_bytes = row_tile(spec.rows) * padded_dim(spec.value_dim) * 4
    for warps in (1, 2, 4, 8):
        # Half of a warp's 32 KiB of registers (255 per thread) at most.
        if warps >= preferred and accumulator_bytes <= warps * 16 * _KIB:
            return warps
    return 8


def _splits(programs: int, spec: AttentionSpec, profile: DeviceProfile, block_kv: int, many: bool) -> int:
    kv_len = max(spec.kv_len, PLANNED_SYMBOLIC_KV_LEN) if "kv_len" in spec.symbolic else spec.kv_len
    tiles = max(1, -(-kv_len // block_kv))
    wanted = PROGRAMS_PER_SM_WHEN_MANY * profile.sm_count if many else profile.sm_count
    per_program = wanted // programs if not many or programs < profile.sm_count * 2 else 1
    return max(1, min(per_program, tiles, MAX_SPLITS))


def choose(spec: AttentionSpec, profile: DeviceProfile) -> KernelConfig:
    """The heuristic's configuration: admissible, deterministic, with no prefetch (at the best pipelined configuration
    L2 prefetching gains nothing that survives a control; the tuner may find otherwise for a given device).

    Raises:
        InadmissibleConfigError: not even the most cautious configuration fits the device.
    """
    family = _family(profile)
    programs = max(1, spec.batch * spec.kv_heads * row_tiles(spec.rows))
    many = programs > MANY_PROGRAMS_PER_SM * profile.sm_count
    tile_bytes = family.many_tile_bytes if many else family.few_tile_bytes
    block_kv = _block_kv(spec, tile_bytes)
    config = KernelConfig(
        block_kv=block_kv,
        num_splits=_splits(programs, spec, profile, block_kv, many),
        num_warps=_warps(spec, family.many_warps if many else family.few_warps),
        num_stages=family.many_stages if many else family.few_stages,
        load_path=LoadPath.TMA if profile.has_tma and spec.tma_loadable else LoadPath.POINTER,
        launch_overlap=profile.has_launch_overlap,
    )
    return _shrink_to_fit(spec, config, profile)


def _shrink_to_fit(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> KernelConfig:
    """Give up pipeline stages, then tile size, until the config is admissible."""
    while (reason := why_inadmissible(spec, config, profile)) is not None:
        if config.num_stages > 1:
            config = replace(config, num_stages=config.num_stages - 1)
        elif config.block_kv > 16:
            config = replace(config, block_kv=config.block_kv // 2)
        else:
            raise InadmissibleConfigError(config.encode(), reason)
    return config
