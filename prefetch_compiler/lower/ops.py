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
from ..reference import same_dtype_attention, same_dtype_lse
from ..spec import QUANTISED_FORMATS, ScaleGranularity, Storage
from .addresses import for_these_addresses, readable
from .launch import empty_lse, launch_decode

log = logging.getLogger("prefetch_compiler")

_OPERANDS = (
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? bounds, bool is_causal, float scale, bool heads_first,"
    " str config, int site, bool strict, Tensor? sink=None, float? softcap=None, Tensor? k_scale=None,"
    " Tensor? v_scale=None, Tensor? table=None, Tensor? k_zero=None, Tensor? v_zero=None, str storage='',"
    " Tensor? rope=None)"
)
for _name, _result in (("decode_attention", "Tensor"), ("decode_attention_lse", "(Tensor, Tensor)")):
    library.define(
        f"{_name}{_OPERANDS} -> {_result}",
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
    )

DECODE_ATTENTION = torch.ops.kvprefetch.decode_attention.default
# The same, and the log-sum-exp of each row: float32 (batch, query_heads, q_len).
DECODE_ATTENTION_LSE = torch.ops.kvprefetch.decode_attention_lse.default

# Sequences' bounds seen per site while explain() runs a model; None, and free, at all other times.
_observed: dict[int, float] | None = None
# Configurations that could not be launched, and why.
_failed_configs: dict[str, str] = {}


def why_not_launched(config: KernelConfig) -> str | None:
    """What a launch of ``config`` failed with in this process, since when PyTorch has served in its place; or None."""
    return _failed_configs.get(config.encode())


def forget_failed_launches() -> None:
    """Try again: what was wrong with the machine may have been mended."""
    _failed_configs.clear()


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


def _attend(
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
    sink: torch.Tensor | None,
    softcap: float | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    table: torch.Tensor | None,
    k_zero: torch.Tensor | None,
    v_zero: torch.Tensor | None,
    storage: str,
    rope: torch.Tensor | None,
    lse: torch.Tensor | None,
) -> torch.Tensor:
    """The output. ``lse`` is written where it is given."""
    batch, query_heads, q_len, _ = q.shape
    if v.shape[2] != k.shape[2]:
        raise RuntimeError(f"attention site {site}: key has {k.shape[2]} positions and value {v.shape[2]}")
    kv_len = k.shape[2] if table is None else table.shape[1] * k.shape[2]
    stored_as = Storage.decode(storage)
    if _observed is not None:
        _observe(site, bounds, kv_len, q_len, is_causal)
    if mask is not None:
        mask = mask.expand(batch, query_heads, q_len, kv_len)
    if config not in _failed_configs:
        try:
            if readable(k, v):
                chosen = for_these_addresses(KernelConfig.decode(config), k, v if rope is None else rope)
                return launch_decode(
                    q, k, v, mask, bounds, is_causal=is_causal, scale=scale, heads_first=heads_first, config=chosen,
                    softcap=softcap, sink=sink, lse=lse, k_scale=k_scale, v_scale=v_scale, table=table,
                    k_zero=k_zero, v_zero=v_zero, storage=stored_as, rope=rope,
                )  # fmt: skip
        except Exception as error:
            if strict:
                raise KernelLaunchError(config, error) from error
            _failed_configs[config] = f"{type(error).__name__}: {error}"
            log.warning(
                "kernel %s failed to launch, PyTorch serves from now on: %s: %s", config, type(error).__name__, error
            )
    if rope is not None:
        k = torch.cat([k, rope.expand(*k.shape[:3], -1)], -1)
    if table is not None:
        k, v = in_one_piece(k, table), in_one_piece(v, table)
        k_scale, v_scale, k_zero, v_zero = (
            _scale_in_one_piece(one, table) for one in (k_scale, v_scale, k_zero, v_zero)
        )
    if k.dtype in QUANTISED_FORMATS:
        k = dequantise(k, k_scale, q.dtype, k_zero, minima=stored_as.key_minima, packing=stored_as.packing)
        v = dequantise(v, v_scale, q.dtype, v_zero, minima=stored_as.value_minima, packing=stored_as.packing)
    if lse is not None:
        lse.copy_(same_dtype_lse(q, k, mask, is_causal=is_causal, scale=scale, softcap=softcap, sink=sink))
    if softcap is None and sink is None:
        return call_sdpa(q, k, v, mask, is_causal, scale, True, heads_first)
    out = same_dtype_attention(q, k, v, mask, is_causal=is_causal, scale=scale, softcap=softcap, sink=sink)
    return in_memory_order(out, heads_first)


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
    k_zero: torch.Tensor | None = None,
    v_zero: torch.Tensor | None = None,
    storage: str = "",
    rope: torch.Tensor | None = None,
) -> torch.Tensor:
    return _attend(
        q, k, v, mask, bounds, is_causal, scale, heads_first, config, site, strict, sink, softcap, k_scale, v_scale,
        table, k_zero, v_zero, storage, rope, None,
    )  # fmt: skip


def _decode_attention_lse(
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
    k_zero: torch.Tensor | None = None,
    v_zero: torch.Tensor | None = None,
    storage: str = "",
    rope: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    lse = empty_lse(q)
    out = _attend(
        q, k, v, mask, bounds, is_causal, scale, heads_first, config, site, strict, sink, softcap, k_scale, v_scale,
        table, k_zero, v_zero, storage, rope, lse,
    )  # fmt: skip
    return out, lse


def _scale_in_one_piece(scale: torch.Tensor | None, table: torch.Tensor) -> torch.Tensor | None:
    if scale is None or granularity_of(scale, paged=True) is not ScaleGranularity.TOKEN:
        return scale
    return in_one_piece(scale, table)


for _backend in ("CPU", "CUDA"):
    library.impl("decode_attention", _decode_attention, _backend)
    library.impl("decode_attention_lse", _decode_attention_lse, _backend)


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
    k_zero: torch.Tensor | None = None,
    v_zero: torch.Tensor | None = None,
    storage: str = "",
    rope: torch.Tensor | None = None,
) -> torch.Tensor:
    return fake_output(q, Storage.decode(storage).columns(v.shape[3]), heads_first)


@torch.library.impl(library, "decode_attention_lse", "Meta")
def _fake_lse(
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
    k_zero: torch.Tensor | None = None,
    v_zero: torch.Tensor | None = None,
    storage: str = "",
    rope: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return fake_output(q, Storage.decode(storage).columns(v.shape[3]), heads_first), empty_lse(q)
