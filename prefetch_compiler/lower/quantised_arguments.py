"""Whether the arguments of an attention over a quantised cache fit one another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidQuantisedAttentionError
from ..spec import QUANTISED_FORMATS

_MASK_DTYPES = (torch.bool, torch.float16, torch.bfloat16, torch.float32)


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    mask: Tensor | None,
    bounds: Tensor | None,
    is_causal: bool,
) -> None:
    """As ``quantised_attention.quantised_decode_attention`` takes them.

    Raises:
        InvalidQuantisedAttentionError: they do not; names the first that does not.
    """
    _check_operands(query, key, value)
    _check_scale("key_scale", key_scale, key)
    _check_scale("value_scale", value_scale, value)
    if mask is not None:
        _check_mask(mask, query, key, is_causal)
    if bounds is not None:
        _check_bounds(bounds, query)


def _require(holds: bool, argument: str, given: object, rule: str) -> None:
    if not holds:
        raise InvalidQuantisedAttentionError(argument, given, rule)


def _check_operands(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _require(tensor.ndim == 4, name, tuple(tensor.shape), "of four dimensions: (batch, heads, length, dim)")
        _require(tensor.device == query.device, name, tensor.device, f"on the query's device, {query.device}")
    _require(query.is_floating_point(), "query", query.dtype, "of a floating-point dtype")
    formats = ", ".join(str(dtype) for dtype in QUANTISED_FORMATS)
    _require(key.dtype in QUANTISED_FORMATS, "key", key.dtype, f"of one of the dtypes {formats}")
    _require(value.dtype == key.dtype, "value", value.dtype, f"of the key's dtype, {key.dtype}")
    batch, heads, _, head_dim = query.shape
    _require(key.shape[0] == batch, "key", tuple(key.shape), f"of the query's batch, {batch}")
    _require(key.shape[3] == head_dim, "key", tuple(key.shape), f"of the query's head_dim, {head_dim}")
    _require(value.shape[:3] == key.shape[:3], "value", tuple(value.shape), f"of the key's {tuple(key.shape[:3])}")
    _require(
        heads % key.shape[1] == 0, "key", tuple(key.shape), f"of a number of heads that divides the query's {heads}"
    )


def _check_scale(name: str, scale: Tensor | None, cache: Tensor) -> None:
    if scale is None:
        return
    batch, heads, length, _ = cache.shape
    rule = f"of shape () or (1|{batch}, 1|{heads}, 1|{length})"
    _require(scale.is_floating_point(), name, scale.dtype, "of a floating-point dtype")
    _require(scale.device == cache.device, name, scale.device, f"on the cache's device, {cache.device}")
    _require(scale.ndim in (0, 3), name, tuple(scale.shape), rule)
    fits = all(size in (1, whole) for size, whole in zip(scale.shape, (batch, heads, length), strict=False))
    _require(fits, name, tuple(scale.shape), rule)


def _check_mask(mask: Tensor, query: Tensor, key: Tensor, is_causal: bool) -> None:
    batch, heads, q_len, _ = query.shape
    whole = (batch, heads, q_len, key.shape[2])
    _require(not is_causal, "is_causal", is_causal, "False where there is a mask")
    _require(mask.dtype in _MASK_DTYPES, "attn_mask", mask.dtype, "bool, float16, bfloat16 or float32")
    _require(mask.device == query.device, "attn_mask", mask.device, f"on the query's device, {query.device}")
    fits = mask.ndim <= 4 and all(
        size in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(whole), strict=False)
    )
    _require(fits, "attn_mask", tuple(mask.shape), f"broadcastable to {whole}")


def _check_bounds(bounds: Tensor, query: Tensor) -> None:
    _require(bounds.dtype == torch.int32, "bounds", bounds.dtype, "int32, as mask_bounds gives it")
    fits = bounds.ndim == 2 and bounds.shape[0] in (1, query.shape[0]) and bounds.shape[1] == 4
    _require(bounds.device == query.device, "bounds", bounds.device, f"on the query's device, {query.device}")
    _require(fits, "bounds", tuple(bounds.shape), f"of shape (1|{query.shape[0]}, 4), as mask_bounds gives it")
