"""The operator over a quantised cache: it selects a configuration for what it is called with, and launches it.

Unlike ``decode_attention``, which a lowered graph calls with a configuration, models call this one themselves
(``prefetch_compiler.quantised_attention``), compiled or not. What no kernel serves is dequantised for PyTorch's SDPA.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import KernelConfig, LoadPath, PrefetchKind
from ..database.overlay import Overlays, load
from ..device import DeviceProfile, profile
from ..errors import InadmissibleConfigError, KernelLaunchError, Refused, SiteNotLoweredError
from ..quantisation import dequantise, granularity_of
from ..recognize.marker import library
from ..select.selection import select
from ..spec import AttentionSpec, MaskKind, QuantisedCache, TensorLayout
from .launch import empty_output, launch_decode
from .quantised_arguments import check_arguments

log = logging.getLogger("prefetch_compiler")

library.define(
    "quantised_decode_attention(Tensor q, Tensor k, Tensor v, Tensor? k_scale, Tensor? v_scale, Tensor? mask,"
    " Tensor? bounds, bool is_causal, float scale, bool strict,"
    " bool deterministic) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)

QUANTISED_DECODE_ATTENTION = torch.ops.kvprefetch.quantised_decode_attention.default

_ALIGNMENT = 16
# What was said already: why specs are not served, and configurations that failed.
_said: set[str] = set()
_failed_configs: set[tuple[AttentionSpec, KernelConfig]] = set()


def _quantised_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    mask: Tensor | None,
    bounds: Tensor | None,
    is_causal: bool,
    scale: float,
    strict: bool,
    deterministic: bool,
) -> Tensor:
    batch, query_heads, q_len, _ = q.shape
    expanded = None if mask is None else mask.expand(batch, query_heads, q_len, k.shape[2])
    try:
        spec = spec_of(q, k, v, k_scale, v_scale, mask, is_causal, scale)
        config = for_these_addresses(_selected(spec, _profile_of(q.device), _databases(), deterministic), k, v)
    except (Refused, InadmissibleConfigError) as refusal:
        if strict:
            raise SiteNotLoweredError("quantised_decode_attention", str(refusal)) from refusal
        _say_once(f"no kernel serves this attention over a quantised cache, SDPA does: {refusal}")
        return dequantised_attention(q, k, v, k_scale, v_scale, mask, bounds, is_causal, scale)
    if (spec, config) not in _failed_configs:
        try:
            return launch_decode(
                q, k, v, expanded, bounds, is_causal=is_causal, scale=scale, heads_first=True, config=config,
                k_scale=k_scale, v_scale=v_scale,
            )  # fmt: skip
        except Exception as error:
            if strict:
                raise KernelLaunchError(config.encode(), error) from error
            _failed_configs.add((spec, config))
            _say_once(
                f"kernel {config.encode()} failed to launch, SDPA serves from now on: {type(error).__name__}: {error}"
            )
    return dequantised_attention(q, k, v, k_scale, v_scale, mask, bounds, is_causal, scale)


for _backend in ("CPU", "CUDA"):
    library.impl("quantised_decode_attention", _quantised_decode_attention, _backend)


@torch.library.impl(library, "quantised_decode_attention", "Meta")
def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    mask: Tensor | None,
    bounds: Tensor | None,
    is_causal: bool,
    scale: float,
    strict: bool,
    deterministic: bool,
) -> Tensor:
    check_arguments(q, k, v, k_scale, v_scale, mask, bounds, is_causal)
    return empty_output(q, v.shape[3], heads_first=True)


def spec_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> AttentionSpec:
    """What is computed; shapes as in AttentionSpec, the mask of four dimensions and not expanded.

    Raises:
        Refused: columns are not adjacent, or pairs of them not aligned.
    """
    for name, tensor in (("query", q), ("key", k), ("value", v)):
        if tensor.stride(3) != 1:
            raise Refused(f"the last stride of {name} is {tensor.stride(3)}; it must be 1")
    if (k.data_ptr() | v.data_ptr()) % 2:
        raise Refused("key or value starts at an odd address: columns are read in pairs")
    kind = MaskKind.NONE if mask is None else MaskKind.BOOL if mask.dtype == torch.bool else MaskKind.ADDITIVE
    scale_dtype = next((given.dtype for given in (k_scale, v_scale) if given is not None), None)
    return AttentionSpec(
        batch=q.shape[0],
        query_heads=q.shape[1],
        kv_heads=k.shape[1],
        q_len=q.shape[2],
        kv_len=k.shape[2],
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        dtype=q.dtype,
        scale=scale,
        key_layout=TensorLayout(*k.stride()[:3]),
        value_layout=TensorLayout(*v.stride()[:3]),
        mask=kind,
        mask_dtype=None if mask is None else mask.dtype,
        mask_per_row=mask is not None and (mask.shape[1] > 1 or mask.shape[2] > 1),
        is_causal=is_causal,
        cache=QuantisedCache(k.dtype, granularity_of(k_scale), granularity_of(v_scale), scale_dtype),
    )


@lru_cache(maxsize=1024)
def _selected(spec: AttentionSpec, device: DeviceProfile, databases: Overlays, deterministic: bool) -> KernelConfig:
    return select(spec, device, databases, deterministic=deterministic).config


@cache
def _databases() -> Overlays:
    """As they are when the first attention is computed."""
    return load()


def _profile_of(device: torch.device) -> DeviceProfile:
    try:
        return profile(device)
    except ValueError as error:
        raise Refused(str(error)) from error


def for_these_addresses(config: KernelConfig, k: Tensor, v: Tensor) -> KernelConfig:
    """TMA and bulk prefetch need 16-byte aligned addresses, which only the tensors of a call can tell."""
    if (k.data_ptr() | v.data_ptr()) % _ALIGNMENT == 0:
        return config
    return replace(config, load_path=LoadPath.POINTER, prefetch_kind=PrefetchKind.LINE)


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)


def dequantised_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    mask: Tensor | None,
    bounds: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """The same in plain PyTorch: K and V dequantised to the queries' dtype, and SDPA. Keys outside ``bounds`` count as
    0 and as hidden, whatever is stored there: NaN may be."""
    key, value = dequantise(k, k_scale, q.dtype), dequantise(v, v_scale, q.dtype)
    if bounds is not None:
        position = torch.arange(k.shape[2], device=q.device)
        inside = (position >= bounds[:, :1]) & (position < bounds[:, 1:2])
        key, value = (cache.masked_fill(~inside[:, None, :, None], 0.0) for cache in (key, value))
        mask = _restricted(mask, inside[:, None, None, :])
        if is_causal:
            mask, is_causal = mask & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(), False
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(
        q, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=True
    ).contiguous()


def _restricted(mask: Tensor | None, inside: Tensor) -> Tensor:
    if mask is None:
        return inside
    if mask.dtype == torch.bool:
        return mask & inside
    return mask.masked_fill(~inside, float("-inf"))
