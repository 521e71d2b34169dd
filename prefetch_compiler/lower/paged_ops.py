"""The operator of decode attention over a paged cache, for code that calls it by itself: no graph is searched for it.

Configurations are selected at the first call with given shapes and kept. What no kernel can run is gathered and given
to SDPA.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from ..config import KernelConfig
from ..database import overlay
from ..device import profile
from ..errors import InadmissibleConfigError, Refused
from ..recognize.marker import call_sdpa, fake_output, library
from ..select.selection import select
from ..spec import AttentionSpec, TensorLayout
from .launch import launch_decode
from .ops import for_these_addresses
from .paged_checks import check_lengths, check_pools, check_table

log = logging.getLogger("prefetch_compiler")

library.define(
    "paged_decode_attention(Tensor query, Tensor key_pages, Tensor value_pages, Tensor block_table, Tensor bounds,"
    " float scale) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)

PAGED_DECODE_ATTENTION = torch.ops.kvprefetch.paged_decode_attention.default

# Configurations that failed to launch: SDPA serves in their place.
_failed: set[KernelConfig] = set()


def paged_spec(
    query: torch.Tensor, key_pages: torch.Tensor, value_pages: torch.Tensor, block_table: torch.Tensor, scale: float
) -> AttentionSpec:
    """What a call computes; shapes as in AttentionSpec."""
    batch, query_heads, q_len, head_dim = query.shape
    _, kv_heads, page_size, value_dim = value_pages.shape
    return AttentionSpec(
        batch=batch,
        query_heads=query_heads,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=block_table.shape[1] * page_size,
        head_dim=head_dim,
        value_dim=value_dim,
        dtype=query.dtype,
        scale=scale,
        key_layout=TensorLayout(*key_pages.stride()[:3]),
        value_layout=TensorLayout(*value_pages.stride()[:3]),
        page_size=page_size,
    )


@lru_cache(maxsize=1024)
def config_for(spec: AttentionSpec, device: torch.device) -> KernelConfig | None:
    """From the databases in effect at the first call, else the heuristic's; None where no kernel can run."""
    try:
        return select(spec, profile(device), overlay.load()).config
    except (Refused, InadmissibleConfigError, ValueError) as reason:
        log.warning("paged attention %s is left to SDPA: %s", spec.describe(), reason)
        return None


def gathered_attention(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same by SDPA, on a copy of all that the table can hold. What nobody holds is neither looked up nor read."""
    page_size = key_pages.shape[2]
    positions = torch.arange(block_table.shape[1] * page_size, device=query.device)
    held = positions < bounds[:, 1:2]
    pages = block_table.masked_fill(~held[:, ::page_size], 0).long()

    def contiguous(pool: torch.Tensor) -> torch.Tensor:
        return pool[pages].transpose(1, 2).flatten(2, 3).masked_fill(~held[:, None, :, None], 0.0)

    keys, values = contiguous(key_pages), contiguous(value_pages)
    out = call_sdpa(query, keys, values, held[:, None, None, :], False, scale, True, True)
    # A sequence that holds nothing: what SDPA makes of it depends on its backend.
    return out.masked_fill(~held[:, None, None, :1], 0.0)


def _paged_decode_attention(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    config = config_for(paged_spec(query, key_pages, value_pages, block_table, scale), query.device)
    if config is None or config in _failed:
        return gathered_attention(query, key_pages, value_pages, block_table, bounds, scale)
    try:
        return launch_decode(
            query, key_pages, value_pages, None, bounds, is_causal=False, scale=scale, heads_first=True,
            config=for_these_addresses(config, key_pages, value_pages), table=block_table,
        )  # fmt: skip
    except Exception as error:
        _failed.add(config)
        log.warning(
            "kernel %s failed to launch, SDPA serves from now on: %s: %s", config.encode(), type(error).__name__, error
        )
    return gathered_attention(query, key_pages, value_pages, block_table, bounds, scale)


for _backend in ("CPU", "CUDA"):
    library.impl("paged_decode_attention", _paged_decode_attention, _backend)


@torch.library.impl(library, "paged_decode_attention", "Meta")
def _fake(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_table: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    # Here and not only before the call: Dynamo reports what is raised here in our words.
    check_pools(query, key_pages, value_pages)
    check_table(query, block_table)
    # Bounds have the lengths' shape, but for the last dimension.
    check_lengths(query, bounds[..., 0])
    return fake_output(query, value_pages.shape[3], True)
