"""A decode attention that a model calls by name: what it is given, whether that fits together, and what it computes.

What does not fit together is an error of the caller's. What fits and no kernel serves is refused with a reason.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidAttentionInputError, Refused
from ..quantisation import granularity_of, group_of
from ..spec import (
    HEAD_DIM_MULTIPLE,
    MAX_HEAD_DIM,
    MAX_Q_LEN,
    PACKED_DTYPES,
    PACKED_FORMATS,
    PAGE_SIZES,
    QUANTISED_FORMATS,
    SUPPORTED_DTYPES,
    ZERO_DTYPES,
    AttentionSpec,
    MaskKind,
    QuantisedCache,
    Storage,
    TensorLayout,
)
from .addresses import readable

_MASK_DTYPES = (torch.bool, *SUPPORTED_DTYPES)
_LENGTH_DTYPES = (torch.int32, torch.int64)
# What models call.
PLAIN, QUANTISED, PAGED = "decode_attention", "quantised_decode_attention", "paged_decode_attention"


class AttentionCall(NamedTuple):
    """Operands as in AttentionSpec; ``mask`` of four dimensions and not expanded, ``sink`` (query_heads,). With a
    ``table`` K and V are page pools, and there are ``lengths``. ``function`` is what the model called."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    mask: Tensor | None
    bounds: Tensor | None
    lengths: Tensor | None
    table: Tensor | None
    sink: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None
    function: str
    k_zero: Tensor | None = None
    v_zero: Tensor | None = None
    storage: str = ""

    @property
    def stored_as(self) -> Storage:
        """What ``storage``, as operators take it, says."""
        return Storage.decode(self.storage)

    @property
    def kv_len(self) -> int:
        """Keys that a sequence may hold."""
        return self.k.shape[2] if self.table is None else self.table.shape[1] * self.k.shape[2]

    def expanded_mask(self) -> Tensor | None:
        """As the launch takes it."""
        batch, query_heads, q_len, _ = self.q.shape
        return None if self.mask is None else self.mask.expand(batch, query_heads, q_len, self.kv_len)


def zeros_of(
    function: str,
    key_zero: Tensor | None,
    value_zero: Tensor | None,
    key_minimum: Tensor | None,
    value_minimum: Tensor | None,
    packing: str | None,
) -> tuple[Tensor | None, Tensor | None, str]:
    """The last of a call's operands: zeros or minima of K and of V, and what they and the numbers are.

    Raises:
        InvalidAttentionInputError: both are given for one of the two, or there is no such packing.
    """
    if packing is not None and packing not in PACKED_FORMATS:
        raise InvalidAttentionInputError(function, "packing", packing, f"one of {', '.join(PACKED_FORMATS)}, or None")
    for side, zero, minimum in (("key", key_zero, key_minimum), ("value", value_zero, value_minimum)):
        if zero is not None and minimum is not None:
            raise InvalidAttentionInputError(function, f"{side}_minimum", "given", f"None where there is a {side}_zero")
    storage = Storage(key_minimum is not None, value_minimum is not None, packing or "")
    keys = key_zero if key_minimum is None else key_minimum
    values = value_zero if value_minimum is None else value_minimum
    return keys, values, storage.encode()


def narrowed(scale: Tensor | None, cache: Tensor) -> Tensor | None:
    """A scale or zero without the last of its four dimensions, where that says no more than that all columns share it,
    as those do that were made with ``keepdim``."""
    of_rows = scale is not None and scale.ndim == 4 and cache.ndim == 4 and scale.shape[3] == 1
    return scale[..., 0] if scale is not None and of_rows and scale.shape[2] in (1, cache.shape[2]) else scale


def check_call(call: AttentionCall) -> None:
    """Raises:
    InvalidAttentionInputError: operands do not fit one another; names the first that does not.
    """
    _check_queries_and_cache(call)
    for side, cache, scale, zero, minima in (
        ("key", call.k, call.k_scale, call.k_zero, call.stored_as.key_minima),
        ("value", call.v, call.v_scale, call.v_zero, call.stored_as.value_minima),
    ):
        name = f"{side}_minimum" if minima else f"{side}_zero"
        if scale is not None:
            _check_scale(call, f"{side}_scale", scale, cache)
        if zero is not None:
            _check_zero(call, name, zero, cache)
        if scale is not None and zero is not None:
            _check_groups(call, name, scale, zero)
    _check_mask(call)
    _check_bounds(call)
    _check_lengths(call)
    if call.table is not None:
        _check_table(call, call.table)
    _check_softcap_and_sink(call)


def _require(call: AttentionCall, holds: bool, argument: str, given: object, rule: str) -> None:
    if not holds:
        raise InvalidAttentionInputError(call.function, argument, given, rule)


def _check_queries_and_cache(call: AttentionCall) -> None:
    q, k, v = call.q, call.k, call.v
    key, value = ("key", "value") if call.table is None else ("key_pages", "value_pages")
    for name, tensor in (("query", q), (key, k), (value, v)):
        _require(call, tensor.ndim == 4, name, tuple(tensor.shape), "of four dimensions")
        _require(call, tensor.device == q.device, name, tensor.device, f"on the query's device, {q.device}")
    _require(call, q.is_floating_point(), "query", q.dtype, "of a floating-point dtype")
    formats = ", ".join(str(dtype) for dtype in QUANTISED_FORMATS)
    if call.table is None:
        if call.function == PLAIN:
            _require(call, k.dtype == q.dtype, key, k.dtype, f"of the query's dtype, {q.dtype}")
        else:
            _require(call, k.dtype in QUANTISED_FORMATS, key, k.dtype, f"of one of the dtypes {formats}")
        _require(call, k.shape[0] == q.shape[0], key, tuple(k.shape), f"of the query's batch, {q.shape[0]}")
    else:
        fits = k.dtype == q.dtype or k.dtype in QUANTISED_FORMATS
        _require(call, fits, key, k.dtype, f"of the query's dtype, {q.dtype}, or one of {formats}")
        _require(call, k.shape[0] > 0 and k.shape[2] > 0, key, tuple(k.shape), "at least one page of at least one key")
    _require(call, v.dtype == k.dtype, value, v.dtype, f"of the dtype of {key}, {k.dtype}")
    packing = call.stored_as.packing
    if packing:
        rule = f"torch.uint8 or torch.int8, for numbers of {packing}"
        _require(call, k.dtype in PACKED_DTYPES, key, k.dtype, rule)
    columns = call.stored_as.columns(k.shape[3])
    rule = f"of the query's head_dim, {q.shape[3]}" + (", half as many bytes" if packing else "")
    _require(call, columns == q.shape[3], key, tuple(k.shape), rule)
    _require(call, v.shape[:3] == k.shape[:3], value, tuple(v.shape), f"of the {tuple(k.shape[:3])} of {key}")
    divides = k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0
    _require(call, divides, key, tuple(k.shape), f"of a number of heads that divides the query's {q.shape[1]}")


def _check_scale(call: AttentionCall, name: str, scale: Tensor, cache: Tensor) -> None:
    _require(call, cache.dtype in QUANTISED_FORMATS, name, "given", f"None for a cache of {cache.dtype}")
    _require(call, scale.is_floating_point(), name, scale.dtype, "of a floating-point dtype")
    _check_scale_shape(call, name, scale, cache)


def _check_zero(call: AttentionCall, name: str, zero: Tensor, cache: Tensor) -> None:
    _require(call, cache.dtype in QUANTISED_FORMATS, name, "given", f"None for a cache of {cache.dtype}")
    dtypes = ", ".join(str(dtype) for dtype in ZERO_DTYPES)
    _require(call, zero.dtype in ZERO_DTYPES, name, zero.dtype, f"of one of the dtypes {dtypes}")
    _check_scale_shape(call, name, zero, cache)


def _check_scale_shape(call: AttentionCall, name: str, scale: Tensor, cache: Tensor) -> None:
    size, heads, length, elements = cache.shape
    dim = call.stored_as.columns(elements)
    _require(call, scale.device == cache.device, name, scale.device, f"on the cache's device, {cache.device}")
    shapes = ((), (1, 1, 1), (1, heads, 1), (size, 1, length), (size, heads, length))
    rule = f"of shape () or (1, 1|{heads}, 1) or ({size}, 1|{heads}, {length})"
    fits = tuple(scale.shape) in shapes
    if call.table is None:
        rule = (
            f"of shape () or (1|{size}, 1|{heads}, 1|{length}) or (1|{size}, 1|{heads}, rows, columns), where rows "
            f"divides {length} and columns {dim}"
        )
        fits = scale.ndim in (0, 3, 4) and all(
            given in (1, whole) for given, whole in zip(scale.shape[:2], (size, heads), strict=False)
        )
        if fits and scale.ndim == 3:
            fits = scale.shape[2] in (1, length)
        if fits and scale.ndim == 4:
            rows, columns = scale.shape[2:]
            fits = rows > 0 and columns > 0 and length % rows == 0 and dim % columns == 0
    _require(call, fits, name, tuple(scale.shape), rule)


def _check_groups(call: AttentionCall, name: str, scale: Tensor, zero: Tensor) -> None:
    """Scale and zero may be of groups of one size, or one of them may be shared by those of the other."""
    if max(scale.ndim, zero.ndim) < 4:
        return
    grids = [(*one.shape[2:], 1)[:2] for one in (scale, zero) if one.ndim > 0]
    fit = all(len({grid[dim] for grid in grids} - {1}) < 2 for dim in (0, 1))
    _require(call, fit, name, tuple(zero.shape), f"of groups like those of the scale, {tuple(scale.shape)}")


def _check_mask(call: AttentionCall) -> None:
    mask = call.mask
    if mask is None:
        return
    batch, heads, q_len, _ = call.q.shape
    whole = (batch, heads, q_len, call.kv_len)
    _require(call, not call.is_causal, "is_causal", call.is_causal, "False where there is a mask")
    _require(call, call.lengths is None, "lengths", "given", "None where there is a mask")
    _require(call, mask.dtype in _MASK_DTYPES, "attn_mask", mask.dtype, "bool, float16, bfloat16 or float32")
    _require(call, mask.device == call.q.device, "attn_mask", mask.device, f"on the query's device, {call.q.device}")
    fits = mask.ndim <= 4 and all(
        size in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(whole), strict=False)
    )
    _require(call, fits, "attn_mask", tuple(mask.shape), f"broadcastable to {whole}")


def _check_bounds(call: AttentionCall) -> None:
    bounds, batch = call.bounds, call.q.shape[0]
    if bounds is None:
        return
    _require(call, call.mask is not None, "bounds", "given", "None without a mask; lengths say how many keys there are")
    _require(call, bounds.dtype == torch.int32, "bounds", bounds.dtype, "int32, as mask_bounds gives it")
    _require(call, bounds.device == call.q.device, "bounds", bounds.device, f"on the query's device, {call.q.device}")
    fits = bounds.ndim == 2 and bounds.shape[0] in (1, batch) and bounds.shape[1] == 4
    _require(call, fits, "bounds", tuple(bounds.shape), f"of shape (1|{batch}, 4), as mask_bounds gives it")


def _check_lengths(call: AttentionCall) -> None:
    lengths, batch = call.lengths, call.q.shape[0]
    if lengths is None:
        _require(call, call.table is None, "lengths", None, "given for a paged cache")
        return
    fits = lengths.ndim == 1 and lengths.shape[0] == batch
    _require(call, fits, "lengths", tuple(lengths.shape), f"of shape ({batch},)")
    _require(call, lengths.dtype in _LENGTH_DTYPES, "lengths", lengths.dtype, "of dtype torch.int32 or torch.int64")
    _require(
        call, lengths.device == call.q.device, "lengths", lengths.device, f"on the query's device, {call.q.device}"
    )


def _check_table(call: AttentionCall, table: Tensor) -> None:
    batch = call.q.shape[0]
    fits = table.ndim == 2 and table.shape[0] == batch and table.shape[1] > 0
    _require(call, fits, "block_table", tuple(table.shape), f"of shape ({batch}, max_pages)")
    _require(call, table.dtype == torch.int32, "block_table", table.dtype, "of dtype torch.int32")
    _require(
        call, table.device == call.q.device, "block_table", table.device, f"on the query's device, {call.q.device}"
    )


def _check_softcap_and_sink(call: AttentionCall) -> None:
    cap, sink, heads = call.softcap, call.sink, call.q.shape[1]
    if cap is not None:
        _require(call, 0 < cap < math.inf, "softcap", cap, "a positive number, or None where scores are not capped")
    if sink is not None:
        _require(call, tuple(sink.shape) == (heads,), "sink", tuple(sink.shape), f"of shape ({heads},)")
        _require(call, sink.is_floating_point(), "sink", sink.dtype, "of a floating-point dtype")
        _require(call, sink.device == call.q.device, "sink", sink.device, f"on the query's device, {call.q.device}")


def spec_of(call: AttentionCall) -> AttentionSpec:
    """What is computed.

    Raises:
        Refused: no kernel serves such shapes, strides or dtypes.
    """
    _refuse_operands(call)
    q, k, v, mask = call.q, call.k, call.v, call.mask
    kind = MaskKind.NONE if call.lengths is None else MaskKind.LENGTHS
    if mask is not None:
        kind = MaskKind.BOOL if mask.dtype == torch.bool else MaskKind.ADDITIVE
    return AttentionSpec(
        batch=q.shape[0],
        query_heads=q.shape[1],
        kv_heads=k.shape[1],
        q_len=q.shape[2],
        kv_len=call.kv_len,
        head_dim=q.shape[3],
        value_dim=call.stored_as.columns(v.shape[3]),
        dtype=q.dtype,
        scale=call.scale,
        key_layout=TensorLayout(*k.stride()[:3]),
        value_layout=TensorLayout(*v.stride()[:3]),
        mask=kind,
        mask_dtype=None if mask is None else mask.dtype,
        mask_per_row=mask is not None and (mask.shape[1] > 1 or mask.shape[2] > 1),
        is_causal=call.is_causal,
        softcap=call.softcap,
        sink=call.sink is not None,
        cache=_cache_of(call),
        page_size=0 if call.table is None else k.shape[2],
    )


def _cache_of(call: AttentionCall) -> QuantisedCache | None:
    if call.k.dtype not in QUANTISED_FORMATS:
        return None
    paged = call.table is not None
    granularities = (granularity_of(one, paged=paged) for one in (call.k_scale, call.v_scale, call.k_zero, call.v_zero))
    keys, values, key_zeros, value_zeros = granularities
    return QuantisedCache(
        call.k.dtype, keys, values, _dtype_of(call.k_scale, call.v_scale), key_zeros, value_zeros,
        _dtype_of(call.k_zero, call.v_zero), call.stored_as,
        group_of(call.k_scale, call.k_zero, call.kv_len, call.stored_as.columns(call.k.shape[3])),
        group_of(call.v_scale, call.v_zero, call.kv_len, call.stored_as.columns(call.v.shape[3])),
    )  # fmt: skip


def _dtype_of(*tensors: Tensor | None) -> torch.dtype | None:
    return next((given.dtype for given in tensors if given is not None), None)


def _refuse_operands(call: AttentionCall) -> None:
    for name, tensor in (("query", call.q), ("key", call.k), ("value", call.v)):
        if tensor.stride(3) != 1:
            raise Refused(f"the last stride of {name} is {tensor.stride(3)}; it must be 1")
        dim = tensor.shape[3] if tensor is call.q else call.stored_as.columns(tensor.shape[3])
        if dim % HEAD_DIM_MULTIPLE or not 0 < dim <= MAX_HEAD_DIM:
            raise Refused(
                f"{name} has heads of {dim}; multiples of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM} are served"
            )
    if call.q.dtype not in SUPPORTED_DTYPES:
        raise Refused(f"queries of {call.q.dtype}")
    if call.q.shape[2] > MAX_Q_LEN:
        raise Refused(f"{call.q.shape[2]} query positions, more than {MAX_Q_LEN}")
    if not readable(call.k, call.v):
        raise Refused("key or value starts at an odd address: columns are read in pairs")
    if call.table is not None:
        _refuse_pages(call.k.shape[2], call.table)


def _refuse_pages(page_size: int, table: Tensor) -> None:
    if page_size not in PAGE_SIZES:
        raise Refused(f"pages of {page_size} keys: powers of two from {PAGE_SIZES[0]} to {PAGE_SIZES[-1]} are served")
    if table.shape[1] > 1 and table.stride(1) != 1:
        raise Refused(f"the last stride of block_table is {table.stride(1)}; it must be 1")
