"""Memory orders in which a (batch, heads, length, dim) operand reaches a kernel, each inside a band of NaN.

All leave the last dimension contiguous, which is all that a kernel may rely on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .poison import NAN

GUARD_ELEMENTS = 4096


def contiguous(x: Tensor) -> Tensor:
    """(batch, heads, length, dim) with no gaps: one row past a head's end is the next head's first."""
    return _guarded(x.shape, x)


def transposed(x: Tensor) -> Tensor:
    """Stored (batch, length, heads, dim), as projections leave it."""
    return _guarded(x.transpose(1, 2).shape, x.transpose(1, 2)).transpose(1, 2)


def sliced(x: Tensor) -> Tensor:
    """A window of a larger cache: NaN heads, rows and columns on both sides, strides still multiples of 16 bytes."""
    batch, heads, length, dim = x.shape
    store = _guarded((batch, heads + 2, length + 9, dim + 16), None, like=x)
    view = store[:, 1 : heads + 1, 5 : length + 5, 8 : dim + 8]
    view.copy_(x)
    return view


def packed_pair(x: Tensor) -> Tensor:
    """Stored (batch, heads, length, 2, dim), as a cache that keeps K and V side by side."""
    batch, heads, length, dim = x.shape
    view = _guarded((batch, heads, length, 2, dim), None, like=x)[:, :, :, 1]
    view.copy_(x)
    return view


def odd_strides(x: Tensor) -> Tensor:
    """Odd strides and an odd offset: no load may be widened beyond one element."""
    batch, heads, length, dim = x.shape
    view = _guarded((batch, heads * (length + 2) + 1, dim + 1), None, like=x)[:, : heads * (length + 2), 1:]
    view = view.unflatten(1, (heads, length + 2))[:, :, 1:-1]
    view.copy_(x)
    return view


def shared_batch(x: Tensor) -> Tensor:
    """Batch stride 0: every sequence reads the first one's data."""
    return contiguous(x[:1]).expand(x.shape)


def shared_heads(x: Tensor) -> Tensor:
    """Head stride 0: every head reads the first one's data."""
    return contiguous(x[:, :1]).expand(x.shape)


def off_by(x: Tensor, elements: int) -> Tensor:
    """A contiguous copy that starts ``elements`` past a 16-byte boundary."""
    flat = x.new_full((x.numel() + elements + GUARD_ELEMENTS,), NAN)
    return flat[elements : elements + x.numel()].view(x.shape).copy_(x)


Layout = Callable[[Tensor], Tensor]
KV_LAYOUTS: dict[str, Layout] = {
    layout.__name__: layout
    for layout in (contiguous, transposed, sliced, packed_pair, odd_strides, shared_batch, shared_heads)
}
QUERY_LAYOUTS: dict[str, Layout] = {layout.__name__: layout for layout in (contiguous, transposed, sliced, odd_strides)}


def _guarded(shape: torch.Size | tuple[int, ...], data: Tensor | None, like: Tensor | None = None) -> Tensor:
    """A contiguous tensor of ``shape`` inside a larger allocation; NaN where ``data`` does not fill it."""
    template = data if data is not None else like
    assert template is not None
    count = torch.Size(shape).numel()
    flat = template.new_full((count + 2 * GUARD_ELEMENTS,), NAN)
    view = flat[GUARD_ELEMENTS : GUARD_ELEMENTS + count].view(shape)
    return view.copy_(data) if data is not None else view
