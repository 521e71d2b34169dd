"""The marker: an operator with SDPA's inputs and meaning that survives AOTAutograd as one node.

SDPA is composite: traced into ATen it becomes a device- and build-dependent mess. Standing in for it in the Dynamo
graph, the marker keeps a site whole, with its operands in program order, until the graph is functional. Run as it is,
it calls SDPA, so a marker that nobody lowers is still right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_SCHEMA = (
    "marked_sdpa(Tensor q, Tensor k, Tensor v, Tensor? mask, bool is_causal, float? scale, bool enable_gqa,"
    " bool heads_first, int site) -> Tensor"
)

library = torch.library.Library("kvprefetch", "FRAGMENT")
library.define(_SCHEMA, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def in_memory_order(out: torch.Tensor, heads_first: bool) -> torch.Tensor:
    """``out`` (batch, heads, q_len, dim), contiguous in that order or in (batch, q_len, heads, dim)."""
    if heads_first:
        return out.contiguous()
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def call_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    heads_first: bool,
) -> torch.Tensor:
    """What a marked site means."""
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return in_memory_order(out, heads_first)


@torch.library.impl(library, "marked_sdpa", "CompositeExplicitAutograd")
def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    heads_first: bool,
    site: int,
) -> torch.Tensor:
    return call_sdpa(q, k, v, mask, is_causal, scale, enable_gqa, heads_first)


@torch.library.impl(library, "marked_sdpa", "Meta")
def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    heads_first: bool,
    site: int,
) -> torch.Tensor:
    return fake_output(q, v.shape[3], heads_first)


def fake_output(q: torch.Tensor, value_dim: int | torch.SymInt, heads_first: bool) -> torch.Tensor:
    """An empty output in the site's memory order."""
    batch, heads, q_len, _ = q.shape
    if heads_first:
        return q.new_empty((batch, heads, q_len, value_dim))
    return q.new_empty((batch, q_len, heads, value_dim)).transpose(1, 2)


MARKED_SDPA = torch.ops.kvprefetch.marked_sdpa.default
