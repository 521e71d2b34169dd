"""The one predicate that says whether a config may run a spec on a device: used before every use of a config."""

from __future__ import annotations

from ..config import KernelConfig, LoadPath, Merge, OperandOrder, Partition
from ..device import DeviceProfile
from ..spec import AttentionSpec
from .footprint import (
    COLUMNS_OF_A_CHAIN,
    MIN_QUANTISED_ROWS,
    PRODUCER_COLUMNS,
    WARPGROUP_ROWS,
    WARPGROUP_WARPS,
    chains_of_a_score,
    row_tile_of,
    shared_memory_estimate_bytes,
)
from .gluon import has_gluon

# Of wgmma: warpgroup products with their operands in shared memory. Later GPUs have others. The kernel with a producer
# warp asks for them, and for registers that one warp hands to another.
WGMMA_ARCH = 90


def why_inadmissible(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> str | None:
    """The reason why ``config`` cannot run ``spec`` on ``profile``, or None when it can.

    The interpreter ignores launch overlap and prefetching and emulates TMA, so it admits all three.
    """
    emulated = profile.backend == "interpreter"
    if config.load_path is not LoadPath.POINTER:
        if not (profile.has_tma or emulated):
            return f"TMA loads need sm_90 or later, not {profile.name}"
        if not spec.tma_loadable:
            return "TMA loads need K and V strides that are positive multiples of 16 bytes"
        if spec.page_size and spec.masked:
            return "TMA loads need tiles that begin with a page, and those of a masked cache begin where its mask does"
        if 0 < spec.page_size < config.block_kv:
            return f"TMA loads need pages of whole tiles, and {spec.page_size} keys of a page are no {config.block_kv}"
        if _is_summed_in_chains(spec):
            return f"TMA loads bring whole rows, and scores in float32 are sums of {COLUMNS_OF_A_CHAIN} columns each"
    if spec.page_size and config.prologue_prefetch:
        return "a prologue prefetch of a paged cache would read its table before it is known to be written"
    refusal = _why_not_in_template(spec, config, profile)
    if refusal is not None:
        return refusal
    if spec.cache is None and config.operand_order is OperandOrder.KQ and profile.has_warpgroup_products:
        # Seen on an H200 with Triton 3.6: wrong results and stray addresses, unless K and V reach shared memory by
        # asynchronous copies, which a pipelined loop and 16-byte aligned rows give.
        if config.num_stages == 1:
            return "keys-first products outside a pipelined loop (num_stages 1) are miscompiled for sm_90 and later"
        if not spec.rows_aligned:
            return "keys-first products of rows that are not 16-byte aligned are miscompiled for sm_90 and later"
    if config.operand_order is OperandOrder.QK64:
        refusal = _why_not_padded(spec, config, profile)
        if refusal is not None:
            return refusal
    if config.launch_overlap and not (profile.has_launch_overlap or emulated):
        return f"launch overlap needs sm_90 or later, not {profile.name}"
    if config.prefetches and not emulated:
        if config.prefetch_kind.is_bulk and not profile.has_bulk_prefetch:
            return f"bulk prefetch needs sm_90 or later, not {profile.name}"
        if config.prefetch_kind.is_bulk and not spec.tma_loadable:
            return "bulk prefetch needs K and V strides that are positive multiples of 16 bytes"
        if not profile.has_line_prefetch:
            return f"L2 prefetch instructions need an NVIDIA GPU, not {profile.name}"
    needed = shared_memory_estimate_bytes(spec, config)
    if needed > profile.shared_memory_bytes:
        return f"about {needed} bytes of shared memory are needed and {profile.name} has {profile.shared_memory_bytes}"
    return None


def _why_not_padded(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> str | None:
    """What only rows that are padded to a warpgroup's (qk64) ask for."""
    if spec.cache is not None or spec.rope_dim:
        return "query rows over quantised and latent caches are not padded to a warpgroup's"
    if profile.backend != "interpreter" and profile.arch != WGMMA_ARCH:
        return f"query rows are padded for the products of sm_{WGMMA_ARCH}, not for those of {profile.name}"
    if row_tile_of(spec) >= WARPGROUP_ROWS:
        return f"{spec.rows} query rows are as many as a warpgroup multiplies without being padded"
    if spec.element_bytes != 2:
        return f"warpgroups multiply 16-bit numbers, not {spec.dtype}"
    if config.num_warps < WARPGROUP_WARPS:
        return f"{config.num_warps} warps are no warpgroup, which has {WARPGROUP_WARPS}"
    return None


def _is_summed_in_chains(spec: AttentionSpec) -> bool:
    """Whether the columns of a score are added up in parts, which are loaded one by one, for the sake of rounding."""
    return spec.cache is None and not spec.rope_dim and chains_of_a_score(spec.dtype, spec.head_dim) > 1


def _why_not_in_template(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> str | None:
    """What only the template that serves ``spec`` asks for."""
    if config.partition is Partition.STREAMED and (spec.cache is not None or spec.rope_dim):
        return "programs over a quantised or latent cache have one sequence each: tiles are not streamed"
    if spec.rope_dim:
        return _why_not_latent(config, profile) or _why_no_producer(spec, config, profile)
    if config.load_path is LoadPath.PRODUCER:
        return "only latent caches have a kernel with a producer warp"
    return None if spec.cache is None else _why_not_quantised(spec, config, profile)


def _why_not_latent(config: KernelConfig, profile: DeviceProfile) -> str | None:
    """What only the template of latent caches asks for."""
    if config.merge is not Merge.SEPARATE:
        return "splits of a latent cache are merged by a second kernel"
    if config.prologue_prefetch:
        return "a latent cache is not prefetched before its bounds are known"
    if config.load_path is LoadPath.TMA and profile.backend == "cuda" and profile.arch >= 100:
        # Seen with Triton 3.6: products of tensor memory pass their accumulators through shared memory.
        return f"tiles of latents by TMA do not fit the shared memory of {profile.name}"
    by_warpgroups = config.operand_order is OperandOrder.KQ and config.num_warps >= WARPGROUP_WARPS
    if by_warpgroups and profile.backend == "cuda" and profile.arch >= 100:
        # Seen with Triton 3.6: both products of a pipelined loop have stages of their own.
        return f"keys-first products of latents by warpgroups do not fit the shared memory of {profile.name}"
    return None


def _why_no_producer(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> str | None:
    """What only the kernel with a producer warp asks for."""
    if config.load_path is not LoadPath.PRODUCER:
        return None
    if profile.backend == "interpreter":
        return "Triton's interpreter runs no kernels with a producer warp, which are written in Gluon"
    if profile.arch != WGMMA_ARCH:
        return f"a producer warp feeds the products of sm_{WGMMA_ARCH}, not those of {profile.name}"
    if not has_gluon():
        return "kernels with a producer warp are written in Gluon, which this Triton does not have"
    if (spec.head_dim, spec.rope_dim) != PRODUCER_COLUMNS:
        columns = " and ".join(map(str, PRODUCER_COLUMNS))
        return f"a producer warp loads {columns} columns, not {spec.head_dim} and {spec.rope_dim}"
    if spec.element_bytes != 2:
        return f"a producer warp loads tiles of 16-bit numbers, not of {spec.dtype}"
    if config != config.with_producer():
        return f"the kernel with a producer warp is no other than {config.with_producer().encode()}"
    return None


def _why_not_quantised(spec: AttentionSpec, config: KernelConfig, profile: DeviceProfile) -> str | None:
    """What only the template of quantised caches asks for."""
    if config.operand_order is not OperandOrder.KQ:
        return "products over a quantised cache have keys first (kq)"
    if config.merge is not Merge.SEPARATE:
        return "splits of a quantised cache are merged by a second kernel"
    if profile.has_warpgroup_products and config.num_warps >= WARPGROUP_WARPS:
        # What is known of keys-first products of warpgroups (above) makes them no candidate before each is verified.
        if profile.arch >= 100:
            return f"four warps and more make products of warpgroups, not verified with keys first on {profile.name}"
        if row_tile_of(spec) > MIN_QUANTISED_ROWS:
            return f"more than {MIN_QUANTISED_ROWS} query rows and four warps make products of warpgroups, not verified"
    return None
