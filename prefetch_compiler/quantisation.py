"""Quantised caches in plain PyTorch: how K and V become numbers, scales and zeros, and back. To nearest.

Nothing here is fast, and decoding uses none of it but where no kernel serves: a model that decodes quantises a token's
K and V as it writes them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .errors import InvalidAttentionInputError
from .spec import QUANTISED_FORMATS, QuantisedCache, ScaleGranularity

# The least and the largest number that scaling may make: those of the format, and of int8 such as have an opposite.
LIMITS = {"e4m3": (-448.0, 448.0), "e5m2": (-57344.0, 57344.0), "int8": (-127.0, 127.0), "uint8": (0.0, 255.0)}
assert LIMITS.keys() == set(QUANTISED_FORMATS.values())

_SHARED_DIMENSIONS = {
    ScaleGranularity.TENSOR: (0, 1, 2, 3),
    ScaleGranularity.HEAD: (0, 2, 3),
    ScaleGranularity.TOKEN: (3,),
}


def scale_shape(granularity: ScaleGranularity, batch: int, kv_heads: int, kv_len: int) -> tuple[int, ...]:
    """Of a scale as :func:`quantise` makes it; a granularity of ``none`` has none. Of page pools (pages, kv_heads,
    page_size).

    Raises:
        KeyError: there is no scale.
    """
    return {
        ScaleGranularity.TENSOR: (),
        ScaleGranularity.HEAD: (1, kv_heads, 1),
        ScaleGranularity.TOKEN: (batch, kv_heads, kv_len),
    }[granularity]


def granularity_of(scale: Tensor | None, *, paged: bool = False) -> ScaleGranularity:
    """Of a scale or zero of shape () or (1|batch, 1|kv_heads, 1|kv_len); of page pools (1, 1|kv_heads, 1) or (pages,
    1|kv_heads, page_size)."""
    if scale is None:
        return ScaleGranularity.NONE
    if scale.ndim == 0 or scale.numel() == 1:
        return ScaleGranularity.TENSOR
    of_tokens = scale.shape[2] > 1 or (paged and scale.shape[0] > 1)
    return ScaleGranularity.TOKEN if of_tokens else ScaleGranularity.HEAD


def quantise(
    x: Tensor, dtype: torch.dtype, granularity: ScaleGranularity | str, scale_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor | None]:
    """The numbers (in ``dtype``) and the scale with which ``number * scale`` is nearest to ``x`` (batch, kv_heads,
    kv_len, dim), each scale such that the largest magnitude it is for is the format's largest. uint8 has no numbers
    below 0: see :func:`quantise_affine`.

    Returns:
        The numbers in the shape of ``x``, and a scale in ``scale_dtype``: None (granularity ``none``), or of shape (),
        (1, kv_heads, 1) or (batch, kv_heads, kv_len). Zeros alone get a scale of 1.
    """
    granularity = ScaleGranularity(granularity)
    x = x.float()
    if granularity is ScaleGranularity.NONE:
        return _rounded(x, dtype), None
    scale = _scale_for(x.abs(), _limits(dtype)[1], granularity).to(scale_dtype)
    return _rounded(x / scale.float(), dtype), _without_ones(scale, granularity)


def quantise_affine(
    x: Tensor,
    dtype: torch.dtype,
    granularity: ScaleGranularity | str,
    scale_dtype: torch.dtype = torch.float32,
    *,
    minima: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (in ``dtype``), scales and zeros with which ``(number - zero) * scale`` is nearest to ``x`` (batch,
    kv_heads, kv_len, dim), from the least of what a scale is for to the largest. Zeros are whole numbers; with
    ``minima`` it is ``number * scale + zero``, and they are not.

    Args:
        dtype: int8 or uint8.
        granularity: ``tensor``, ``head`` or ``token``.

    Returns:
        The numbers in the shape of ``x``; scales in ``scale_dtype`` and zeros in float32, of one shape, as
        :func:`quantise` has it.

    Raises:
        InvalidAttentionInputError: another dtype, or a granularity of ``none``.
    """
    granularity = ScaleGranularity(granularity)
    if dtype.is_floating_point or dtype not in QUANTISED_FORMATS:
        raise InvalidAttentionInputError("quantise_affine", "dtype", dtype, "torch.int8 or torch.uint8")
    if granularity not in _SHARED_DIMENSIONS:
        raise InvalidAttentionInputError(
            "quantise_affine", "granularity", granularity.value, "tensor, head or token: zeros come with scales"
        )
    x = x.float()
    least, largest = _limits(dtype)
    low, high = -_largest_of(-x, granularity), _largest_of(x, granularity)
    # Equal numbers are a whole multiple of themselves.
    alone = torch.where(low == 0, 1.0, low.abs())
    scale = torch.where(high > low, (high - low) / (largest - least), alone).to(scale_dtype)
    wide = scale.float()
    zero = low - least * wide if minima else (least - low / wide).round()
    numbers = (x - zero) / wide if minima else x / wide + zero
    return _rounded(numbers, dtype), _without_ones(scale, granularity), _without_ones(zero, granularity)


class QuantisedSide(NamedTuple):
    """K or V as a quantised cache has it."""

    numbers: Tensor
    scale: Tensor | None
    zero: Tensor | None
    minima: bool

    def dequantised(self, stored: Tensor) -> Tensor:
        """``stored`` numbers by these scales and zeros: exact, in float64."""
        return dequantise(stored, self.scale, torch.float64, self.zero, minima=self.minima)


def quantise_for(cache: QuantisedCache, side: str, x: Tensor) -> QuantisedSide:
    """``x`` (batch, kv_heads, kv_len, dim) as ``cache`` stores its ``side``, ``key`` or ``value``, to try a kernel on:
    its zeros, whose granularity need not be that of scales, all differ from their neighbours."""
    scales, zeros = (cache.key_scales, cache.key_zeros) if side == "key" else (cache.value_scales, cache.value_zeros)
    minima = cache.storage.key_minima if side == "key" else cache.storage.value_minima
    scale_dtype = cache.scale_dtype or torch.float32
    if zeros is ScaleGranularity.NONE:
        return QuantisedSide(*quantise(x, cache.dtype, scales, scale_dtype), None, minima)
    x = x.float()
    least, largest = _limits(cache.dtype)
    steps = _steps(x, zeros)
    if minima:
        zero = (_largest_of(x.abs(), zeros) * (-1.0 if least == 0 else 0.25) * (1 + steps / 8)).to(cache.zero_dtype)
        scaled = x - zero.float()
        scale = _scale_for(scaled.abs(), largest, scales)
    else:
        zero = ((least + largest + largest / 2 * steps) / 2).round().to(cache.zero_dtype)
        room = min(largest - float(zero.max()), float(zero.min()) - least)
        scaled, scale = x, _scale_for(x.abs(), room, scales)
    scale = scale.to(scale_dtype)
    numbers = scaled / scale.float() + (0.0 if minima else zero.float())
    given_scale = None if scales is ScaleGranularity.NONE else _without_ones(scale, scales)
    return QuantisedSide(_rounded(numbers, cache.dtype), given_scale, _without_ones(zero, zeros), minima)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    return LIMITS[QUANTISED_FORMATS[dtype]]


def _largest_of(x: Tensor, granularity: ScaleGranularity) -> Tensor:
    """Of what shares a scale: of four dimensions, 1 where one is shared."""
    return x.amax(_SHARED_DIMENSIONS[granularity], keepdim=True)


def _scale_for(sizes: Tensor, largest: float, granularity: ScaleGranularity) -> Tensor:
    """By which ``largest`` is the largest of ``sizes``; 1 of zeros alone, and where there are no scales."""
    if granularity is ScaleGranularity.NONE:
        return sizes.new_ones(1, 1, 1, 1)
    peak = _largest_of(sizes, granularity)
    return torch.where(peak > 0, peak / largest, 1.0)


def _steps(x: Tensor, granularity: ScaleGranularity) -> Tensor:
    """Numbers from -0.5 to 0.5 in the shape of ``_largest_of``, none like its neighbours'."""
    shape = _largest_of(x, granularity).shape
    places = torch.zeros(shape, device=x.device)
    for dim, size in enumerate(shape):
        places += torch.arange(size, device=x.device).view([-1] + [1] * (3 - dim)) * (dim + 2)
    return (places * 3 % 7 - 3) / 6


def _without_ones(scale: Tensor, granularity: ScaleGranularity) -> Tensor:
    """From four dimensions to those of ``scale_shape``."""
    return scale.reshape(()) if granularity is ScaleGranularity.TENSOR else scale.squeeze(3)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.clamp(*_limits(dtype))
    return (x if dtype.is_floating_point else x.round()).to(dtype)


def dequantise(
    stored: Tensor, scale: Tensor | None, dtype: torch.dtype, zero: Tensor | None = None, *, minima: bool = False
) -> Tensor:
    """``(stored - zero) * scale``, or with ``minima`` ``stored * scale + zero`` (batch, kv_heads, kv_len, dim), in
    float32 and then rounded to ``dtype``; in float64 throughout where that is it."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    values = stored.to(wide)
    if zero is not None and not minima:
        values = values - zero.to(wide)[..., None]
    if scale is not None:
        values = values * scale.to(wide)[..., None]
    if zero is not None and minima:
        values = values + zero.to(wide)[..., None]
    return values.to(dtype)
