"""Masks that code written by hand passes to SDPA: every shape that broadcasts, and rows that see nothing.

(SDPA on the CPU takes no mask of one dimension.)

A mask is named ``<kind>-<shape>``: the kind says what its entries are, the shape which of B, H, q, S it has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import Draw

SHAPES = ("q.S", "1.S", "q.1", "H.q.S", "1.1.1.S", "B.1.1.S", "1.H.1.S", "1.1.q.S", "B.1.q.S", "B.H.q.S", "B.1.q.1")
KINDS = ("bool", "bias", "inf", "min")


def build_mask(name: str, sizes: dict[str, int], dtype: torch.dtype) -> Tensor:
    """The mask ``name`` for sizes B, H, q and S. Where it has several rows, the last one hides every key."""
    kind, letters = name.split("-")
    shape = [sizes.get(letter, 1) for letter in letters.split(".")]
    draw = Draw(len(name) * 7 + shape[-1], dtype)
    visible = _visible(draw, shape)
    if kind == "bool":
        return visible
    bias = draw.normal(*shape)
    if kind == "bias":
        return bias
    return bias.masked_fill(visible.logical_not(), float("-inf") if kind == "inf" else torch.finfo(dtype).min)


def _visible(draw: Draw, shape: list[int]) -> Tensor:
    """Half of the keys of a range that lies elsewhere for each row, its first key among them."""
    visible = draw.visible(*shape)
    rows = visible.view(-1, shape[-1])
    row = torch.arange(len(rows), device=visible.device)[:, None]
    key = torch.arange(shape[-1], device=visible.device)
    first = row % 3 if shape[-1] > 1 else 0 * row
    rows &= (key > first) & (key < shape[-1] // 2 + row % 4)
    rows |= key == first
    if len(rows) > 1:
        rows[-1] = False
    return visible
