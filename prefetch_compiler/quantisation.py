"""Quantised caches in plain PyTorch: how K and V become numbers, scales and zeros, and back. To nearest.

Nothing here is fast, and decoding uses none of it but where no kernel serves: a model that decodes quantises a token's
K and V as it writes them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InvalidAttentionInputError
from .spec import PACKED_DTYPES, PACKED_FORMATS, QUANTISED_FORMATS, QuantisedCache, ScaleGranularity

# The least and the largest number that scaling may make: those of the format, and of int8 such as have an opposite.
LIMITS = {"e4m3": (-448.0, 448.0), "e5m2": (-57344.0, 57344.0), "int8": (-127.0, 127.0), "uint8": (0.0, 255.0)}
LIMITS |= {name: (0.0, 15.0) if name.startswith("uint4") else (-7.0, 7.0) for name in PACKED_FORMATS}
assert LIMITS.keys() == {*QUANTISED_FORMATS.values(), *PACKED_FORMATS}

_SHARED_DIMENSIONS = {
    ScaleGranularity.TENSOR: (0, 1, 2, 3),
    ScaleGranularity.HEAD: (0, 2, 3),
    ScaleGranularity.TOKEN: (3,),
}


def scale_shape(
    granularity: ScaleGranularity,
    batch: int,
    kv_heads: int,
    kv_len: int,
    dim: int = 1,
    group: tuple[int, int] | None = None,
) -> tuple[int, ...]:
    """Of a scale as :func:`quantise` makes it; a granularity of ``none`` has none. Of page pools (pages, kv_heads,
    page_size). A ``group`` is as in QuantisedCache.

    Raises:
        KeyError: there is no scale.
    """
    if granularity is ScaleGranularity.GROUP and group is not None:
        tokens, columns = group
        return batch, kv_heads, kv_len // tokens if tokens else 1, dim // columns
    return {
        ScaleGranularity.TENSOR: (),
        ScaleGranularity.HEAD: (1, kv_heads, 1),
        ScaleGranularity.TOKEN: (batch, kv_heads, kv_len),
    }[granularity]


def granularity_of(scale: Tensor | None, *, paged: bool = False) -> ScaleGranularity:
    """Of a scale or zero of shape () or (1|batch, 1|kv_heads, 1|kv_len); of page pools (1, 1|kv_heads, 1) or (pages,
    1|kv_heads, page_size). Of four dimensions it is of groups."""
    if scale is None:
        return ScaleGranularity.NONE
    if scale.ndim == 0 or scale.numel() == 1:
        return ScaleGranularity.TENSOR
    if scale.ndim == 4:
        return ScaleGranularity.GROUP
    of_tokens = scale.shape[2] > 1 or (paged and scale.shape[0] > 1)
    return ScaleGranularity.TOKEN if of_tokens else ScaleGranularity.HEAD


def group_of(scale: Tensor | None, zero: Tensor | None, keys: int, dim: int) -> tuple[int, int] | None:
    """Tokens (0: all) and columns of a group of K or of V, as QuantisedCache has them; None where neither its scale nor
    its zero is of groups."""
    grids = [
        one.shape[2:] for one in (scale, zero) if granularity_of(one) is ScaleGranularity.GROUP and one is not None
    ]
    if not grids:
        return None
    rows, columns = max(grid[0] for grid in grids), max(grid[1] for grid in grids)
    return keys // rows if rows > 1 else 0, dim // columns


def quantise(
    x: Tensor,
    dtype: torch.dtype,
    granularity: ScaleGranularity | str,
    scale_dtype: torch.dtype = torch.float32,
    *,
    group: tuple[int, int] | None = None,
    packing: str = "",
) -> tuple[Tensor, Tensor | None]:
    """The numbers (in ``dtype``) and the scale with which ``number * scale`` is nearest to ``x`` (batch, kv_heads,
    kv_len, dim), each scale such that the largest magnitude it is for is the format's largest. uint8 has no numbers
    below 0: see :func:`quantise_affine`.

    Args:
        group: with granularity ``group``, the tokens and the columns that share a scale, which divide kv_len and dim;
            0 tokens are all of them.
        packing: ``int4_interleaved`` and the like (spec.PACKED_FORMATS): two numbers an element of uint8 or int8.

    Returns:
        The numbers in the shape of ``x`` (packed, half as many columns), and a scale in ``scale_dtype``: None
        (granularity ``none``), or of shape (), (1, kv_heads, 1), (batch, kv_heads, kv_len) or, of groups, (batch,
        kv_heads, rows, columns). Zeros alone get a scale of 1.

    Raises:
        InvalidAttentionInputError: there are no such groups, or no such packing.
    """
    granularity = _checked(ScaleGranularity(granularity), x, group, "quantise")
    number_format = _format_of(dtype, packing, "quantise")
    x = x.float()
    if granularity is ScaleGranularity.NONE:
        return _rounded(x, dtype, number_format), None
    peak = LIMITS[number_format][1]
    scale = _without_ones(_scale_for(x.abs(), peak, granularity, group), granularity).to(scale_dtype)
    return _rounded(x / spread(scale, x).float(), dtype, number_format), scale


def quantise_affine(
    x: Tensor,
    dtype: torch.dtype,
    granularity: ScaleGranularity | str,
    scale_dtype: torch.dtype = torch.float32,
    *,
    minima: bool = False,
    group: tuple[int, int] | None = None,
    packing: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (in ``dtype``), scales and zeros with which ``(number - zero) * scale`` is nearest to ``x`` (batch,
    kv_heads, kv_len, dim), from the least of what a scale is for to the largest. Zeros are whole numbers; with
    ``minima`` it is ``number * scale + zero``, and they are not.

    Args:
        dtype: int8 or uint8.
        granularity: ``tensor``, ``head``, ``token`` or ``group``, with a ``group`` and a ``packing`` as in
            :func:`quantise`.

    Returns:
        The numbers in the shape of ``x`` (packed, half as many columns); scales in ``scale_dtype`` and zeros in
        float32, of one shape, as
        :func:`quantise` has it.

    Raises:
        InvalidAttentionInputError: another dtype, a granularity of ``none``, or groups that there are none of.
    """
    granularity = _checked(ScaleGranularity(granularity), x, group, "quantise_affine")
    if dtype.is_floating_point or dtype not in QUANTISED_FORMATS:
        raise InvalidAttentionInputError("quantise_affine", "dtype", dtype, "torch.int8 or torch.uint8")
    if granularity is ScaleGranularity.NONE:
        raise InvalidAttentionInputError(
            "quantise_affine", "granularity", granularity.value, "tensor, head, token or group: zeros come with scales"
        )
    x = x.float()
    number_format = _format_of(dtype, packing, "quantise_affine")
    least, largest = LIMITS[number_format]
    low, high = -_largest_of(-x, granularity, group), _largest_of(x, granularity, group)
    # Equal numbers are a whole multiple of themselves.
    alone = torch.where(low == 0, 1.0, low.abs())
    scale = torch.where(high > low, (high - low) / (largest - least), alone).to(scale_dtype)
    zero = low - least * scale.float() if minima else (least - low / scale.float()).round()
    scale, zero = _without_ones(scale, granularity), _without_ones(zero, granularity)
    wide, shift = spread(scale, x).float(), spread(zero, x)
    numbers = (x - shift) / wide if minima else x / wide + shift
    return _rounded(numbers, dtype, number_format), scale, zero


class QuantisedSide(NamedTuple):
    """K or V as a quantised cache has it."""

    numbers: Tensor
    scale: Tensor | None
    zero: Tensor | None
    minima: bool
    packing: str

    def dequantised(self, stored: Tensor) -> Tensor:
        """``stored`` numbers by these scales and zeros: exact, in float64."""
        return dequantise(stored, self.scale, torch.float64, self.zero, minima=self.minima, packing=self.packing)


def quantise_for(cache: QuantisedCache, side: str, x: Tensor) -> QuantisedSide:
    """``x`` (batch, kv_heads, kv_len, dim) as ``cache`` stores its ``side``, ``key`` or ``value``, to try a kernel on:
    its zeros, whose granularity need not be that of scales, all differ from their neighbours."""
    scales, zeros = (cache.key_scales, cache.key_zeros) if side == "key" else (cache.value_scales, cache.value_zeros)
    group = cache.key_group if side == "key" else cache.value_group
    minima = cache.storage.key_minima if side == "key" else cache.storage.value_minima
    scale_dtype, packing = cache.scale_dtype or torch.float32, cache.storage.packing
    if zeros is ScaleGranularity.NONE:
        numbers, given_scale = quantise(x, cache.dtype, scales, scale_dtype, group=group, packing=packing)
        return QuantisedSide(numbers, given_scale, None, minima, packing)
    x = x.float()
    least, largest = LIMITS[cache.number_format]
    sizes = _largest_of(x.abs(), zeros, group)
    steps = _steps(sizes)
    if minima:
        zero = (sizes * (-1.0 if least == 0 else 0.25) * (1 + steps / 8)).to(cache.zero_dtype)
        zero = _without_ones(zero, zeros)
        scaled, room = x - spread(zero, x).float(), largest
    else:
        zero = ((least + largest + largest / 2 * steps) / 2).round().to(cache.zero_dtype)
        zero = _without_ones(zero, zeros)
        scaled, room = x, min(largest - float(zero.max()), float(zero.min()) - least)
    scale = _without_ones(_scale_for(scaled.abs(), room, scales, group), scales).to(scale_dtype)
    numbers = scaled / spread(scale, x).float()
    if not minima:
        numbers = numbers + spread(zero, x).float()
    given_scale = None if scales is ScaleGranularity.NONE else scale
    stored = _rounded(numbers, cache.dtype, cache.number_format)
    return QuantisedSide(stored, given_scale, zero, minima, packing)


def _format_of(dtype: torch.dtype, packing: str, function: str) -> str:
    """The name that kernels know a format by.

    Raises:
        InvalidAttentionInputError: there is none such.
    """
    if not packing:
        return QUANTISED_FORMATS[dtype]
    if packing not in PACKED_FORMATS:
        raise InvalidAttentionInputError(function, "packing", packing, f"one of {', '.join(PACKED_FORMATS)}")
    if dtype not in PACKED_DTYPES:
        raise InvalidAttentionInputError(function, "dtype", dtype, "torch.uint8 or torch.int8 where numbers are packed")
    return packing


def _checked(
    granularity: ScaleGranularity, x: Tensor, group: tuple[int, int] | None, function: str
) -> ScaleGranularity:
    """Raises:
    InvalidAttentionInputError: a group that does not go with the granularity, or does not divide ``x``.
    """
    if (granularity is ScaleGranularity.GROUP) is not (group is not None):
        raise InvalidAttentionInputError(function, "group", group, "given with granularity group, and with no other")
    if group is not None:
        tokens, columns = group
        divides = tokens >= 0 and columns > 0 and x.shape[3] % columns == 0 and x.shape[2] % max(1, tokens) == 0
        if not divides:
            rule = f"tokens (0 for all) and columns that divide {x.shape[2]} and {x.shape[3]}"
            raise InvalidAttentionInputError(function, "group", group, rule)
    return granularity


def _largest_of(x: Tensor, granularity: ScaleGranularity, group: tuple[int, int] | None) -> Tensor:
    """Of what shares a scale: of four dimensions, 1 where one is shared."""
    if granularity is ScaleGranularity.GROUP and group is not None:
        tokens, columns = group
        blocks: Tensor = x.unflatten(3, (-1, columns)).unflatten(2, (-1, tokens or x.shape[2]))
        return blocks.amax((3, 5))
    return x.amax(_SHARED_DIMENSIONS[granularity], keepdim=True)


def _scale_for(sizes: Tensor, largest: float, granularity: ScaleGranularity, group: tuple[int, int] | None) -> Tensor:
    """By which ``largest`` is the largest of ``sizes``; 1 of zeros alone, and where there are no scales."""
    if granularity is ScaleGranularity.NONE:
        return sizes.new_ones(1, 1, 1, 1)
    peak = _largest_of(sizes, granularity, group)
    return torch.where(peak > 0, peak / largest, 1.0)


def _steps(like: Tensor) -> Tensor:
    """Numbers from -0.5 to 0.5 in a tensor of four dimensions, none like its neighbours'."""
    places = torch.zeros_like(like)
    for dim, size in enumerate(like.shape):
        places += torch.arange(size, device=like.device).view([-1] + [1] * (3 - dim)) * (dim + 2)
    return (places * 3 % 7 - 3) / 6


def _without_ones(scale: Tensor, granularity: ScaleGranularity) -> Tensor:
    """From four dimensions to those of ``scale_shape``."""
    if granularity is ScaleGranularity.GROUP:
        return scale
    return scale.squeeze(3) if granularity in (ScaleGranularity.HEAD, ScaleGranularity.TOKEN) else scale.reshape(())


def _rounded(x: Tensor, dtype: torch.dtype, number_format: str) -> Tensor:
    x = x.clamp(*LIMITS[number_format])
    if number_format in PACKED_FORMATS:
        return packed(x.round().to(torch.int8), number_format).view(dtype)
    return (x if dtype.is_floating_point else x.round()).to(dtype)


def packed(numbers: Tensor, packing: str) -> Tensor:
    """Whole ``numbers`` (..., dim) of four bits as uint8 (..., dim / 2), two a byte."""
    low, high = numbers.unflatten(-1, _split(packing, numbers.shape[-1])).unbind(_split_dim(packing))
    bytes_: Tensor = (low.to(torch.uint8) & 0xF) | (high.to(torch.uint8) << 4)
    return bytes_


def unpacked(stored: Tensor, packing: str) -> Tensor:
    """The inverse of :func:`packed`, from any dtype of one byte: int8 (..., dim)."""
    byte = stored.view(torch.uint8)
    halves = torch.stack((byte & 0xF, byte >> 4), _split_dim(packing)).flatten(-2).to(torch.int8)
    return (halves ^ 8) - 8 if packing.startswith("int4") else halves


def _split(packing: str, dim: int) -> tuple[int, int]:
    return (2, dim // 2) if packing.endswith("halves") else (dim // 2, 2)


def _split_dim(packing: str) -> int:
    """Which of the two dimensions of ``_split`` tells the halves of a byte apart."""
    return -2 if packing.endswith("halves") else -1


def dequantise(
    stored: Tensor,
    scale: Tensor | None,
    dtype: torch.dtype,
    zero: Tensor | None = None,
    *,
    minima: bool = False,
    packing: str = "",
) -> Tensor:
    """``(stored - zero) * scale``, or with ``minima`` ``stored * scale + zero`` (batch, kv_heads, kv_len, dim), once
    numbers of a ``packing`` are unpacked. In float32 and then rounded to ``dtype``; in float64 throughout where that is
    it."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    if packing:
        stored = unpacked(stored, packing)
    values = stored.to(wide)
    if zero is not None and not minima:
        values = values - spread(zero.to(wide), stored)
    if scale is not None:
        values = values * spread(scale.to(wide), stored)
    if zero is not None and minima:
        values = values + spread(zero.to(wide), stored)
    return values.to(dtype)


def spread(scale: Tensor, cache: Tensor) -> Tensor:
    """A scale or zero in a shape that broadcasts to that of ``cache``, (batch, kv_heads, kv_len, dim)."""
    if scale.ndim < 4:
        return scale[..., None]
    for dim in (2, 3):
        if 1 < scale.shape[dim] < cache.shape[dim]:
            scale = scale.repeat_interleave(cache.shape[dim] // scale.shape[dim], dim)
    return scale
