"""A configuration that needs no database, from compute capability, SM count and the shape of the site.

Three regimes, by how many programs there are before splitting (one per sequence, KV head and tile of query rows), as
measured on an H200 over batch 1 to 256 and 512 to 131,072 keys:

- *few* (fewer than half the SMs, or three quarters where caches are not short): small tiles, two warps, and splits
  until every SM has two programs, as far as merging them pays. A program's latency is what counts, so it gets little to
  do. Heads wider than 128 keep larger tiles: their accumulator alone asks for four warps.
- *padded* (few, of 17 to 32 query rows, on sm_90): one program per SM, whose rows fill a warpgroup's product.
- *fitting* (half to one and a half times the SMs): one program per SM, unsplit: the largest tiles keep enough bytes in
  flight, and nothing is spent on merging. Short caches take smaller ones, by pointers.
- *paired* (up to twice the SMs, or short caches): two at once on each SM, which share its memory.
- *crowded* (up to four times the SMs, in caches that are not long): all at once, one warp each, whose scores need no
  exchange between warps; none waits for another to end before it asks for its first keys.
- *many*: one after another on each SM, with large tiles again; with the smallest, and one warp, in the shortest caches.

In a long cache the sequences of a batch hold different numbers of keys, and the longest are waited for: few or fitting
programs are split evenly by what each holds (*balanced*). Where there are about as many as run at once, or more of wide
heads or pages, those that do divide all that the batch holds (*streamed*).

Tiles come by pointers where latency counts, by TMA where bandwidth does, and by TMA wherever head_dim is no power of
two, which pointers would fetch lines for and throw away.

How full a cache is, is known on the device only, so splits come from the capacity's side: surplus programs leave at
once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import MAX_SPLITS, KernelConfig, LoadPath, OperandOrder, Partition
from ..device import DeviceProfile
from ..errors import InadmissibleConfigError
from ..spec import AttentionSpec, MaskKind
from .admissible import WGMMA_ARCH, why_inadmissible
from .footprint import (
    MAX_LATENT_ROWS,
    MIN_DOT_ROWS,
    kv_tile_bytes,
    latent_row_tile,
    padded_dim,
    programs_before_splitting,
    row_tile,
    row_tile_of,
    streams_at_once,
)

# A symbolic length grows without recompiling, so its hint says little: plan for a cache worth splitting.
PLANNED_SYMBOLIC_KV_LEN = 8192
# The merge holds a power of two of splits at once: 32 are merged faster than 33.
SPLIT_ROUNDING = 8
# More splits than these are merged at a cost that only long shares repay: sooner where they have more rows than the
# smallest tile, which take longer to multiply than to read.
EASILY_MERGED_SPLITS = 64
KEYS_OF_A_LONG_SHARE = 1024
KEYS_OF_A_LONG_SHARE_OF_MANY_ROWS = 512
KEYS_OF_A_LONG_SHARE_OF_PADDED_ROWS = 256
# Shorter caches leave a program of padded rows hardly a tile.
KEYS_WORTH_PADDED_ROWS = 2048
MOST_PADDED_ROWS = 32
# 512 KB of bf16 K and V of head_dim 256: a memory latency is a small part of reading them.
FIXED_CHUNK_KEYS = 512
# Caches whose sequences are taken to hold different numbers of keys: of any batch but the smallest, from so many keys;
# where there is a program for every fourth SM or more, or heads are wide, from fewer.
SMALLEST_RAGGED_BATCH = 4
LONG_KEYS = 32768
SOMEWHAT_LONG_KEYS = 8192
FITTING_BALANCED_PROGRAMS_PER_SM = 8
# From so many keys on streamed programs repay what crossing from one sequence to the next costs a full cache: sooner of
# wide heads, whose keys are more bytes, where there is one program an SM at most, and of pages, which are looked up
# first, the sooner the more programs there are.
KEYS_WORTH_STREAMING = 8192
KEYS_WORTH_STREAMING_PAGES = 4096
KEYS_WORTH_STREAMING_SOONEST = 2048
# Up to so many programs an SM before splitting: of pages and of wide heads, as far as it was measured.
STREAMED_PROGRAMS_PER_SM = 2
STREAMED_PROGRAMS_PER_SM_PAGES = 4
STREAMED_PROGRAMS_PER_SM_WIDE = 8
MOST_ROWS_OF_LARGE_TILES = 32
KEYS_OF_MANY_LARGE_TILES = 4096
# Unsplit programs that an SM holds at once, of 64 to 128 columns and 16 rows.
CROWDED_PROGRAMS_PER_SM = 4
# With an unsplit program for every second SM or three of four, the others idle: longer caches are split.
KEYS_WORTH_OCCUPYING_IDLE_SMS = 2048
# Where one program an SM reads fewer, latency counts, and not how many bytes are in flight.
KEYS_OF_A_SHORT_CACHE = 512
# Where one of many programs reads no more, it is done before a large tile has come.
KEYS_OF_THE_SHORTEST_CACHE = 128
_KIB = 1024
# Of the 255 that a thread may have. Compiled for sm_80 to sm_120, what needs more spills (Triton 3.6).
MAX_TILE_REGISTERS = 150
# One warp's by TMA, which holds no addresses (sm_90 and sm_100).
MAX_TILE_REGISTERS_OF_ONE_WARP = 180
# Of one tile over a quantised cache, for its two warps: 16 registers a thread. With more, sm_80 to sm_120 spill.
MAX_QUANTISED_SCORES = 1024
# Of a tile that is dequantised in registers, a warp: with more, sm_80 to sm_100 spill.
MAX_GROUPED_NUMBERS = 2048


@dataclass(frozen=True)
class Regime:
    """Settings of one regime. ``tile_bytes`` is one K tile plus one V tile; ``programs_per_sm`` is what splitting aims
    at, 0 for no splitting; ``long_share`` the keys that repay another split where many are merged, 0 for what the rows
    ask for."""

    tile_bytes: int
    warps: int
    stages: int
    load_path: LoadPath
    programs_per_sm: int
    long_share: int = 0


@dataclass(frozen=True)
class Family:
    """The regimes of one GPU family. ``wide`` heads have more than 128 columns. Without ``streamed`` and
    ``streamed_paired`` nothing is streamed, and without ``padded`` no rows are padded to a warpgroup's. Without
    ``shortest`` the shortest caches are read as others are, without ``crowded`` three or four programs an SM as more
    are, and without ``fitting_many_rows`` more than 32 rows as wide heads are."""

    few: Regime
    few_wide: Regime
    fitting: Regime
    fitting_wide: Regime
    paired: Regime
    many: Regime
    streamed: Regime | None = None
    streamed_paired: Regime | None = None
    padded: Regime | None = None
    shortest: Regime | None = None
    crowded: Regime | None = None
    fitting_many_rows: Regime | None = None


@dataclass(frozen=True)
class QuantisedFamily:
    """The regimes of quantised caches: ``few`` with fewer than three programs an SM."""

    few: Regime
    many: Regime


_POINTER, _TMA = LoadPath.POINTER, LoadPath.TMA
# sm_90 as measured on an H200; sm_100 has the same shared memory and follows it.
_LARGE_SHARED_MEMORY = Family(
    few=Regime(16 * _KIB, 2, 4, _POINTER, 2),
    few_wide=Regime(32 * _KIB, 4, 3, _POINTER, 2),
    fitting=Regime(64 * _KIB, 4, 3, _TMA, 1),
    fitting_wide=Regime(32 * _KIB, 4, 4, _TMA, 1),
    paired=Regime(32 * _KIB, 4, 3, _TMA, 0),
    many=Regime(64 * _KIB, 4, 3, _TMA, 0),
    streamed=Regime(64 * _KIB, 8, 3, _TMA, 1),
    streamed_paired=Regime(32 * _KIB, 4, 3, _TMA, 2),
    padded=Regime(32 * _KIB, 4, 3, _TMA, 1, KEYS_OF_A_LONG_SHARE_OF_PADDED_ROWS),
    shortest=Regime(8 * _KIB, 1, 3, _TMA, 0),
    crowded=Regime(16 * _KIB, 1, 3, _TMA, 0),
    fitting_many_rows=Regime(64 * _KIB, 8, 3, _TMA, 1),
)
# sm_80 (163 KiB per program): the same reasoning, not measured.
_MEDIUM_SHARED_MEMORY = Family(
    few=Regime(16 * _KIB, 2, 3, _POINTER, 2),
    few_wide=Regime(32 * _KIB, 4, 3, _POINTER, 2),
    fitting=Regime(32 * _KIB, 4, 3, _POINTER, 1),
    fitting_wide=Regime(32 * _KIB, 4, 3, _POINTER, 1),
    paired=Regime(16 * _KIB, 2, 3, _POINTER, 0),
    many=Regime(16 * _KIB, 2, 3, _POINTER, 0),
)
# sm_86, sm_89, sm_120 (99 KiB): not measured.
_SMALL_SHARED_MEMORY = Family(
    few=Regime(16 * _KIB, 2, 3, _POINTER, 2),
    few_wide=Regime(16 * _KIB, 4, 3, _POINTER, 2),
    fitting=Regime(16 * _KIB, 4, 4, _POINTER, 1),
    fitting_wide=Regime(16 * _KIB, 4, 4, _POINTER, 1),
    paired=Regime(16 * _KIB, 2, 2, _POINTER, 0),
    many=Regime(16 * _KIB, 2, 2, _POINTER, 0),
)
# Anything else, AMD included (64 KiB): not measured.
_CAUTIOUS = Family(
    few=Regime(8 * _KIB, 4, 2, _POINTER, 2),
    few_wide=Regime(8 * _KIB, 4, 2, _POINTER, 2),
    fitting=Regime(8 * _KIB, 4, 2, _POINTER, 1),
    fitting_wide=Regime(8 * _KIB, 4, 2, _POINTER, 1),
    paired=Regime(8 * _KIB, 4, 2, _POINTER, 0),
    many=Regime(8 * _KIB, 4, 2, _POINTER, 0),
)
# Each tile is one round of NumPy calls: large tiles, and splits so that merging runs too.
_INTERPRETED_REGIME = Regime(64 * _KIB, 1, 1, _POINTER, 2)
_INTERPRETED = Family(
    few=_INTERPRETED_REGIME,
    few_wide=_INTERPRETED_REGIME,
    fitting=_INTERPRETED_REGIME,
    fitting_wide=_INTERPRETED_REGIME,
    paired=replace(_INTERPRETED_REGIME, programs_per_sm=0),
    many=replace(_INTERPRETED_REGIME, programs_per_sm=0),
)

# Quantised caches on sm_90, as measured on an H200 at 1 to 256 sequences of 1,024 to 32,768 keys. Other architectures
# with as much shared memory follow.
_QUANTISED_LARGE_SHARED_MEMORY = QuantisedFamily(
    few=Regime(16 * _KIB, 2, 4, _TMA, 2), many=Regime(32 * _KIB, 2, 2, _TMA, 0)
)
# sm_86, sm_89, sm_120 and anything else: not measured.
_QUANTISED_SMALL = QuantisedFamily(few=Regime(8 * _KIB, 2, 3, _TMA, 2), many=Regime(16 * _KIB, 2, 2, _TMA, 0))


def family_of(profile: DeviceProfile) -> Family:
    """The settings for a device."""
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
    fits = max(1, tile_bytes // kv_tile_bytes(spec, 1))
    return min(128, max(16, 1 << (fits.bit_length() - 1)))


def _tile_registers(spec: AttentionSpec, block_kv: int, warps: int) -> float:
    """About how many 32-bit registers of a thread the tiles of one step take: accumulator, queries, scores, one KV
    tile, and the addresses of a mask that differs by row."""
    rows, dim, value_dim = row_tile(spec.rows), padded_dim(spec.head_dim), padded_dim(spec.value_dim)
    tile_bytes = rows * value_dim * 4 + rows * dim * spec.element_bytes + rows * block_kv * 4
    tile_bytes += block_kv * max(dim, value_dim) * spec.element_bytes
    if spec.mask_per_row:
        tile_bytes += rows * block_kv * 8
    return tile_bytes / (warps * 32 * 4)


def _warps(spec: AttentionSpec, preferred: int, block_kv: int) -> int:
    """More warps than preferred when the tiles of one step would not stay in registers."""
    for warps in (1, 2, 4, 8):
        most = MAX_TILE_REGISTERS_OF_ONE_WARP if warps == 1 else MAX_TILE_REGISTERS
        if warps >= preferred and _tile_registers(spec, block_kv, warps) <= most:
            return warps
    return 8


def _regime(family: Family, programs: int, spec: AttentionSpec, profile: DeviceProfile) -> Regime:
    wide = max(spec.head_dim, spec.value_dim) > 128
    idle = programs * 4 < 3 * profile.sm_count and _planned_kv_len(spec) >= KEYS_WORTH_OCCUPYING_IDLE_SMS
    if programs * 2 < profile.sm_count or idle:
        return family.few_wide if wide else family.few
    # More rows leave large tiles no registers, and TMA no page that holds them.
    many_rows = row_tile_of(spec) > MOST_ROWS_OF_LARGE_TILES
    narrow_tiles = wide or many_rows or bool(spec.page_size)
    if programs * 2 <= 3 * profile.sm_count:
        if profile.backend == "cuda" and _planned_kv_len(spec) <= KEYS_OF_A_SHORT_CACHE:
            return replace(family.paired, load_path=_POINTER)
        # But for the eight warps that multiply 64 rows from shared memory.
        multiplied_there = profile.arch == WGMMA_ARCH and spec.element_bytes == 2
        if many_rows and multiplied_there and family.fitting_many_rows and not (wide or spec.page_size):
            return family.fitting_many_rows
        return family.fitting_wide if narrow_tiles else family.fitting
    shortest = _planned_kv_len(spec) <= KEYS_OF_THE_SHORTEST_CACHE and spec.element_bytes == 2
    if family.shortest and shortest and not narrow_tiles:
        return family.shortest
    small = programs <= 2 * profile.sm_count or _planned_kv_len(spec) < KEYS_OF_MANY_LARGE_TILES
    return family.paired if narrow_tiles or small else family.many


def _crowded_regime(family: Family, programs: int, spec: AttentionSpec, profile: DeviceProfile) -> Regime | None:
    """That of programs which an SM holds all at once, more than two, where that pays; else None."""
    # Measured at 512 programs of 2,048 keys; at 4,096, where a program has more to do than to begin, it gained little.
    dims = spec.head_dim, spec.value_dim
    known = row_tile_of(spec) == MIN_DOT_ROWS and min(dims) >= 64 and max(dims) <= 128 and spec.element_bytes == 2
    keys = KEYS_OF_THE_SHORTEST_CACHE < _planned_kv_len(spec) < KEYS_OF_MANY_LARGE_TILES
    at_once = 2 * profile.sm_count < programs <= CROWDED_PROGRAMS_PER_SM * profile.sm_count
    if family.crowded is None or not (known and keys and at_once) or spec.mask_per_row:
        return None
    if spec.tma_loadable and _pages_hold_tiles(spec, _block_kv(spec, family.crowded.tile_bytes)):
        return family.crowded
    return replace(family.crowded, warps=2, load_path=_POINTER)


def _streamed_regime(family: Family, programs: int, spec: AttentionSpec, profile: DeviceProfile) -> Regime | None:
    """That of programs which divide the keys of a whole batch, where that pays; else None."""
    if _crowded_regime(family, programs, spec, profile) is not None:
        return None
    ragged = (spec.masked or spec.mask is MaskKind.LENGTHS) and spec.batch >= SMALLEST_RAGGED_BATCH
    # Measured at 128 to 256 programs of 128 columns, to 1,024 of 256, and to 512 of pages. A growing cache is as long
    # as its sequences, mostly.
    one_query = spec.q_len == 1 and row_tile_of(spec) == MIN_DOT_ROWS and spec.element_bytes == 2
    known = one_query and min(spec.head_dim, spec.value_dim) >= 128 and "kv_len" not in spec.symbolic
    wide, paged = max(spec.head_dim, spec.value_dim) > 128, bool(spec.page_size)
    many = programs > profile.sm_count
    most, keys = STREAMED_PROGRAMS_PER_SM, KEYS_WORTH_STREAMING
    if paged:
        most = STREAMED_PROGRAMS_PER_SM_PAGES
        keys = KEYS_WORTH_STREAMING_SOONEST if many else KEYS_WORTH_STREAMING_PAGES
    elif wide:
        most = STREAMED_PROGRAMS_PER_SM_WIDE
        keys = KEYS_WORTH_STREAMING if many else KEYS_WORTH_STREAMING_SOONEST
    enough = profile.sm_count <= 2 * programs <= 2 * most * profile.sm_count
    if (wide and paged) or not (ragged and known and enough and spec.kv_len >= keys):
        return None
    return family.streamed_paired if paged or many else family.streamed


def _padded_regime(family: Family, programs: int, spec: AttentionSpec, profile: DeviceProfile) -> Regime | None:
    """That of rows padded to the 64 of a warpgroup's product, where that pays; else None."""
    # Measured at 128 columns and 32 rows; with fewer than 16 it gained nothing.
    rows = MIN_DOT_ROWS < row_tile_of(spec) <= MOST_PADDED_ROWS
    known = spec.element_bytes == 2 and padded_dim(spec.head_dim) == padded_dim(spec.value_dim) == 128
    plain = not spec.mask_per_row and not spec.page_size and _planned_kv_len(spec) >= KEYS_WORTH_PADDED_ROWS
    few = programs * 2 < profile.sm_count
    return family.padded if rows and known and plain and few and profile.arch == WGMMA_ARCH else None


def _balanced_regime(family: Family, programs: int, spec: AttentionSpec, profile: DeviceProfile) -> Regime | None:
    """That of splits which follow what each sequence holds, where that pays; else None."""
    if profile.backend != "cuda" or not spec.masked or spec.batch < SMALLEST_RAGGED_BATCH:
        return None
    wide, kv_len = max(spec.head_dim, spec.value_dim) > 128, _planned_kv_len(spec)
    few = family.few_wide if wide else family.few
    if programs * 2 < profile.sm_count:
        long = kv_len >= LONG_KEYS or (kv_len >= SOMEWHAT_LONG_KEYS and programs * 4 >= profile.sm_count)
        return few if long else None
    fitting = programs * 2 <= 3 * profile.sm_count
    long = kv_len >= (SOMEWHAT_LONG_KEYS if wide else LONG_KEYS)
    return replace(few, programs_per_sm=FITTING_BALANCED_PROGRAMS_PER_SM) if fitting and long else None


def _planned_kv_len(spec: AttentionSpec) -> int:
    return max(spec.kv_len, PLANNED_SYMBOLIC_KV_LEN) if "kv_len" in spec.symbolic else spec.kv_len


def _splits(regime: Regime, programs: int, spec: AttentionSpec, profile: DeviceProfile, block_kv: int) -> int:
    kv_len = _planned_kv_len(spec)
    tiles = max(1, -(-kv_len // block_kv))
    many_rows = row_tile_of(spec) > MIN_DOT_ROWS and not spec.rope_dim
    long_share = KEYS_OF_A_LONG_SHARE_OF_MANY_ROWS if many_rows else KEYS_OF_A_LONG_SHARE
    most = max(EASILY_MERGED_SPLITS, kv_len // (regime.long_share or long_share))
    wanted = min(regime.programs_per_sm * profile.sm_count // programs, most)
    if wanted > SPLIT_ROUNDING:
        wanted -= wanted % SPLIT_ROUNDING
    return max(1, min(wanted, tiles, MAX_SPLITS))


def choose(spec: AttentionSpec, profile: DeviceProfile) -> KernelConfig:
    """The heuristic's configuration: admissible, deterministic, with no prefetch (at the best pipelined configuration
    L2 prefetching gains nothing that survives a control; the tuner may find otherwise for a given device).

    Raises:
        InadmissibleConfigError: not even the most cautious configuration fits the device.
    """
    programs = programs_before_splitting(spec)
    if spec.rope_dim:
        return _choose_latent(spec, profile)
    if spec.cache is not None:
        return _choose_quantised(spec, programs, profile)
    regime = _streamed_regime(family_of(profile), programs, spec, profile)
    if regime is None:
        return choose_without_streaming(spec, profile)
    config = _of_regime(regime, _block_kv(spec, regime.tile_bytes), spec, profile)
    config = replace(config, num_splits=_streams(regime, spec, profile), partition=Partition.STREAMED)
    return _shrink_to_fit(spec, config, profile)


def _streams(regime: Regime, spec: AttentionSpec, profile: DeviceProfile) -> int:
    """As many as run at once; or one for each sequence where that is hardly fewer: then a full cache is not merged."""
    streams = streams_at_once(spec, regime.programs_per_sm * profile.sm_count)
    return spec.batch if spec.batch < streams <= spec.batch + spec.batch // 16 else streams


def choose_without_streaming(spec: AttentionSpec, profile: DeviceProfile) -> KernelConfig:
    """Of a cache that is neither latent nor quantised: programs that have one sequence each.

    Raises:
        InadmissibleConfigError: not even the most cautious configuration fits the device.
    """
    family, programs = family_of(profile), programs_before_splitting(spec)
    balanced = _balanced_regime(family, programs, spec, profile)
    padded = _padded_regime(family, programs, spec, profile)
    crowded = _crowded_regime(family, programs, spec, profile)
    regime = padded or balanced or crowded or _regime(family, programs, spec, profile)
    block_kv = _block_kv(spec, regime.tile_bytes)
    splits = _splits(regime, programs, spec, profile, block_kv)
    partition = Partition.STRIDED if splits > 1 else Partition.EVEN
    if balanced and 1 < splits < MAX_SPLITS:
        # Rounding every sequence's share to whole tiles costs about one.
        splits, partition = splits + 1, Partition.BALANCED
    config = replace(_of_regime(regime, block_kv, spec, profile), num_splits=splits, partition=partition)
    if padded:
        config = replace(config, operand_order=OperandOrder.QK64)
    return _shrink_to_fit(spec, config, profile)


def _of_regime(regime: Regime, block_kv: int, spec: AttentionSpec, profile: DeviceProfile) -> KernelConfig:
    """Unsplit."""
    # fp32 is multiplied outside the tensor cores, from registers; tiles that come by TMA then spill 20 KB a thread.
    by_tma = (regime.load_path is LoadPath.TMA or padded_dim(spec.head_dim) != spec.head_dim) and spec.element_bytes < 4
    use_tma = by_tma and profile.has_tma and spec.tma_loadable and _pages_hold_tiles(spec, block_kv)
    return KernelConfig(
        block_kv=block_kv,
        num_splits=1,
        num_warps=_warps(spec, regime.warps, block_kv),
        num_stages=regime.stages,
        load_path=LoadPath.TMA if use_tma else LoadPath.POINTER,
        launch_overlap=profile.has_launch_overlap,
        partition=Partition.EVEN,
    )


def _pages_hold_tiles(spec: AttentionSpec, block_kv: int) -> bool:
    """Whether no tile reaches into a second page, as TMA asks: without a mask tiles begin where pages may."""
    return not spec.page_size or (spec.page_size >= block_kv and not spec.masked)


def _quantised_block_kv(spec: AttentionSpec, tile_bytes: int, crowded: bool) -> int:
    most_scores = MAX_QUANTISED_SCORES // 2 if crowded else MAX_QUANTISED_SCORES
    return min(_block_kv(spec, tile_bytes), max(16, most_scores // row_tile_of(spec)))


def _choose_quantised(spec: AttentionSpec, programs: int, profile: DeviceProfile) -> KernelConfig:
    """Two warps and TMA where there is TMA, and keys first, as the template asks. With three programs an SM or more,
    two stages of larger tiles do; with fewer, splits until there are two programs an SM, and a deeper pipeline."""
    family = _QUANTISED_LARGE_SHARED_MEMORY if profile.shared_memory_bytes >= 150 * _KIB else _QUANTISED_SMALL
    regime = family.many if programs >= 3 * profile.sm_count else family.few
    use_tma = regime.load_path is LoadPath.TMA and profile.has_tma and spec.tma_loadable
    use_tma = use_tma and _pages_hold_tiles(spec, _quantised_block_kv(spec, regime.tile_bytes, spec.mask_per_row))
    # Pointers, of K and V as well as of a mask by row, take registers too; warpgroups are not to be formed.
    warps = regime.warps if use_tma or profile.has_warpgroup_products else 2 * regime.warps
    block_kv = _quantised_block_kv(spec, regime.tile_bytes, spec.mask_per_row or not use_tma)
    if spec.cache is not None and spec.cache.has_groups:
        block_kv = min(block_kv, max(16, MAX_GROUPED_NUMBERS * warps // padded_dim(max(spec.head_dim, spec.value_dim))))
    splits = _splits(regime, programs, spec, profile, block_kv)
    config = KernelConfig(
        block_kv=block_kv,
        num_splits=splits,
        num_warps=warps,
        num_stages=regime.stages,
        load_path=LoadPath.TMA if use_tma else LoadPath.POINTER,
        operand_order=OperandOrder.KQ,
        launch_overlap=profile.has_launch_overlap,
        partition=Partition.STRIDED if splits > 1 else Partition.EVEN,
    )
    return _shrink_to_fit(spec, config, profile)


def _choose_latent(spec: AttentionSpec, profile: DeviceProfile) -> KernelConfig:
    """More than 32 query rows fill the kernel with a producer warp, where there is one."""
    pipelined = choose_without_producer(spec, profile)
    if spec.rows <= MAX_LATENT_ROWS[LoadPath.POINTER]:
        return pipelined
    config = pipelined.with_producer()
    programs = spec.batch * -(-spec.rows // latent_row_tile(spec.rows, config.load_path))
    regime = Regime(0, config.num_warps, config.num_stages, config.load_path, programs_per_sm=1)
    splits = _splits(regime, programs, spec, profile, config.block_kv)
    partition = Partition.STRIDED if splits > 1 else Partition.EVEN
    config = replace(config, num_splits=splits, partition=partition)
    return config if why_inadmissible(spec, config, profile) is None else pipelined


def choose_without_producer(spec: AttentionSpec, profile: DeviceProfile) -> KernelConfig:
    """Of a latent cache: one program an SM, whose accumulator fills its registers. More than 32 query rows are
    multiplied by warpgroups where there are any, from tiles that come by TMA; fewer, or where there are none, from
    tiles by pointers. On an H200 tuning found 12% at most beyond this; elsewhere it compiles with hardly a spill (sm_80
    to sm_120, Triton 3.6).

    Raises:
        InadmissibleConfigError: not even the most cautious configuration fits the device.
    """
    emulated = profile.backend == "interpreter"
    by_warpgroups = profile.arch == WGMMA_ARCH and spec.rows > MAX_LATENT_ROWS[LoadPath.POINTER]
    use_tma = by_warpgroups and spec.tma_loadable and spec.element_bytes == 2 and not spec.mask_per_row
    load_path = LoadPath.TMA if use_tma else LoadPath.POINTER
    rows = latent_row_tile(spec.rows, load_path)
    crowded = spec.element_bytes > 2 or (spec.mask_per_row and rows > MIN_DOT_ROWS)
    block_kv = 64 if use_tma or emulated else 16 if crowded else 32
    regime = Regime(0, 4 if rows == MIN_DOT_ROWS else 8, 2 if use_tma else 3, load_path, 1)
    splits = _splits(regime, spec.batch * -(-spec.rows // rows), spec, profile, block_kv)
    config = KernelConfig(
        block_kv=block_kv,
        num_splits=splits,
        num_warps=regime.warps,
        num_stages=regime.stages,
        load_path=load_path,
        launch_overlap=profile.has_launch_overlap,
        partition=Partition.STRIDED if splits > 1 else Partition.EVEN,
    )
    return _shrink_to_fit(spec, config, profile)


def choose_for_any_batch(spec: AttentionSpec, profile: DeviceProfile) -> KernelConfig:
    """A configuration that does not depend on the batch, so that neither does a sequence's result, bit for bit.

    Keys are added up in chunks of FIXED_CHUNK_KEYS (more where a cache has more chunks than a sequence may have splits;
    in a growing cache, the sixteenth part of it), merged in their order.

    The tiles are those of a launch with few programs. Chunks are small enough to keep a GPU busy at batch 1.

    Raises:
        InadmissibleConfigError: not even the most cautious configuration fits the device.
    """
    one = replace(spec, batch=1)
    config = choose(one, profile)
    kv_len = PLANNED_SYMBOLIC_KV_LEN if "kv_len" in spec.symbolic else spec.kv_len
    chunks = min(-(-kv_len // FIXED_CHUNK_KEYS), MAX_SPLITS)
    partition = Partition.CHUNKED if chunks > 1 else Partition.EVEN
    return replace(config, num_splits=chunks, partition=partition)


def _shrink_to_fit(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> KernelConfig:
    """Give up pipeline stages, then tile size, until the config is admissible."""
    while (reason := why_inadmissible(spec, config, profile)) is not None:
        if config.num_stages > 1:
            config = replace(config, num_stages=config.num_stages - 1)
        elif config.block_kv > 16:
            config = replace(config, block_kv=config.block_kv // 2)
        else:
            fix = "load the model in a dtype of fewer bytes, or use a GPU with more shared memory"
            raise InadmissibleConfigError(config.encode(), f"{reason}: {fix}")
    return config
