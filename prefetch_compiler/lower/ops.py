"""The operator that a lowered graph calls in place of a site.

A plain library operator, not ``triton_op``: programmatic dependent launch and tensor descriptors are launch arguments
that Inductor does not pass on for user kernels, and the same graph must run in Triton's interpreter on a CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config import KernelConfig
from ..errors import KernelLaunchError
from ..paging import in_one_piece
from ..quantisation import dequantise, granularity_of
from ..recognize.marker import call_sdpa, fake_output, in_memory_order, library
from ..reference import same_dtype_attention
from ..spec import QUANTISED_FORMATS, ScaleGranularity
from .addresses import for_these_addresses
from .launch import launch_decode

log = logging.getLogger("prefetch_compiler")

library.define(
    "decode_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? bounds, bool is_causal, float scale,"
    " bool heads_first, str config, int site, bool strict, Tensor? sink=None, float? softcap=None,"
    " Tensor? k_scale=None, Tensor? v_scale=None, Tensor? table=None, Tensor? rope=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)

DECODE_ATTENTION = torch.ops.kvprefetch.decode_attention.default

# Sequences' bounds seen per site while explain() runs a model; None, and free, at all other times.
_observed: dict[int, float] | None = None
_failed_configs: set[str] = set()


@contextmanager
def observe_keys_read() -> Iterator[dict[int, float]]:
    """Collect, per site, the keys read per sequence (mean over the batch) by launches inside the ``with`` block.

    Reads bounds back to the host, so it must not be active under CUDA graph capture.
    """
    global _observed
    _observed = {}
    try:
        yield _observed
    finally:
        _observed = None


def _observe(site: int, bounds: torch.Tensor | None, kv_len: int, q_len: int, is_causal: bool) -> None:
    assert _observed is not None
    limit = min(kv_len, q_len) if is_causal else kv_len
    if bounds is None:
        _observed[site] = float(limit)
    else:
        _observed[site] = float((bounds[:, 1] - bounds[:, 0]).clamp(min=0).double().mean())


def _decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    bounds: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    heads_first: bool,
    config: str,
    site: int,
    strict: bool,
    sink: torch.Tensor | None = None,
    softcap: float | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    rope: torch.Tensor | None = None,
) -> torch.Tensor:
    batch, query_heads, q_len, _ = q.shape
    if v.shape[2] != k.shape[2]:
        raise RuntimeError(f"attention site {site}: key has {k.shape[2]} positions and value {v.shape[2]}")
    kv_len = k.shape[2] if table is None else table.shape[1] * k.shape[2]
    if _observed is not None:
        _observe(site, bounds, kv_len, q_len, is_causal)
    if mask is not None:
        mask = mask.expand(batch, query_heads, q_len, kv_len)
    if config not in _failed_configs:
        chosen = for_these_addresses(KernelConfig.decode(config), k, v if rope is None else rope)
        try:
            return launch_decode(
                q, k, v, mask, bounds, is_causal=is_causal, scale=scale, heads_first=heads_first, config=chosen,
                softcap=softcap, sink=sink, k_scale=k_scale, v_scale=v_scale, table=table,
                rope=rope,
            )  # fmt: skip
        except Exception as error:
            if strict:
                raise KernelLaunchError(config, error) from error
            _failed_configs.add(config)
            log.warning(
                "kernel %s failed to launch, PyTorch serves from now on: %s: %s", config, type(error).__name__, error
            )
    if rope is not None:
        k = torch.cat([k, rope.expand(*k.shape[:3], -1)], -1)
    if table is not None:
        k, v = in_one_piece(k, table), in_one_piece(v, table)
        k_scale, v_scale = _scale_in_one_piece(k_scale, table), _scale_in_one_piece(v_scale, table)
    if k.dtype in QUANTISED_FORMATS:
        k, v = dequantise(k, k_scale, q.dtype), dequantise(v, v_scale, q.dtype)
    if softcap is None and sink is None:
        return call_sdpa(q, k, v, mask, is_causal, scale, True, heads_first)
    out = same_dtype_attention(q, k, v, mask, is_causal=is_causal, scale=scale, softcap=softcap, sink=sink)
    return in_memory_order(out, heads_first)


def _scale_in_one_piece(scale: torch.Tensor | None, table: torch.Tensor) -> torch.Tensor | None:
    if scale is None or granularity_of(scale, paged=True) is not ScaleGranularity.TOKEN:
        return scale
    return in_one_piece(scale, table)


for _backend in ("CPU", "CUDA"):
    library.impl("decode_attention", _decode_attention, _backend)


@torch.library.impl(library, "decode_attention", "Meta")
def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    bounds: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    heads_first: bool,
    config: str,
    site: int,
    strict: bool,
    sink: torch.Tensor | None = None,
    softcap: float | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    table: torch.Tensor | None = None,
    rope: torch.Tensor | None = None,
) -> torch.Tensor:
    return fake_output(q, v.shape[3], heads_first)
