"""Quantised caches in plain PyTorch: how K and V become numbers and scales, and back. Symmetric, to nearest.

Nothing here is fast, and decoding uses none of it but where no kernel serves: a model that decodes quantises a token's
K and V as it writes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .spec import QUANTISED_FORMATS, ScaleGranularity

# The largest magnitude that scaling may make: that of the format, and of int8 one that has an opposite.
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
assert LARGEST.keys() == QUANTISED_FORMATS.keys()

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
    """Of a scale of shape () or (1|batch, 1|kv_heads, 1|kv_len); of page pools (1, 1|kv_heads, 1) or (pages,
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
    kv_len, dim), each scale such that the largest magnitude it is for is the format's largest.

    Returns:
        The numbers in the shape of ``x``, and a scale in ``scale_dtype``: None (granularity ``none``), or of shape (),
        (1, kv_heads, 1) or (batch, kv_heads, kv_len). Zeros alone get a scale of 1.
    """
    granularity = ScaleGranularity(granularity)
    x = x.float()
    if granularity is ScaleGranularity.NONE:
        return _rounded(x, dtype), None
    peak = x.abs().amax(_SHARED_DIMENSIONS[granularity], keepdim=True)
    scale = torch.where(peak > 0, peak / LARGEST[dtype], 1.0).to(scale_dtype)
    shape = scale_shape(granularity, *x.shape[:3])
    return _rounded(x / scale.float(), dtype), scale.reshape(shape)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.clamp(-LARGEST[dtype], LARGEST[dtype])
    return (x.round() if dtype is torch.int8 else x).to(dtype)


def dequantise(stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``stored * scale`` (batch, kv_heads, kv_len, dim), in float32 and then rounded to ``dtype``; exact in float64."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    values = stored.to(wide)
    if scale is not None:
        values = values * scale.to(wide)[..., None]
    return values.to(dtype)
