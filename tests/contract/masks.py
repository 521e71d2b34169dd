"""The masks that decode graphs carry, by name, in the shapes in which they carry them (nothing expanded).

A builder gets the sizes and returns (1|batch, 1|heads, 1|q_len, 1|keys); ``valid`` keys of ``keys`` are in use, unless
the mask says more. Padding, windows and causality follow from positions: query ``i`` stands at valid - q_len + i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEG_INF = float("-inf")


@dataclass(frozen=True)
class MaskSizes:
    batch: int
    heads: int
    q_len: int
    valid: int
    keys: int
    dtype: torch.dtype

    @property
    def key(self) -> Tensor:
        """Positions of the keys: (keys,)"""
        return torch.arange(self.keys)

    @property
    def query(self) -> Tensor:
        """Positions of the queries: (1, 1, q_len, 1)"""
        return (torch.arange(self.q_len) + self.valid - self.q_len)[None, None, :, None]

    @property
    def sequence(self) -> Tensor:
        """Numbers of the sequences: (batch, 1, 1, 1)"""
        return torch.arange(self.batch)[:, None, None, None]

    def noise(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), the same at every call."""
        return torch.rand(shape, generator=torch.Generator().manual_seed(20))


def prefix(s: MaskSizes) -> Tensor:
    """A static cache that is partly filled, all sequences alike: (1, 1, 1, keys)"""
    return (s.key < s.valid)[None, None, None]


def ragged(s: MaskSizes) -> Tensor:
    """Sequences of different lengths, the second one empty: (batch, 1, 1, keys)"""
    lengths = torch.tensor([s.valid, 0, (s.valid + 1) // 2])[s.sequence % 3]
    return s.key < lengths


def left_padding(s: MaskSizes) -> Tensor:
    """Each sequence starts later than the one before it: (batch, 1, 1, keys)"""
    return (s.key >= s.sequence * 5 % s.valid) & (s.key < s.valid)


def left_padded_causal(s: MaskSizes) -> Tensor:
    """What HF builds for a left-padded batch; queries that stand in the padding see nothing: (batch, 1, q_len, keys)"""
    return left_padding(s) & (s.key <= s.query)


def window(s: MaskSizes) -> Tensor:
    """The last 21 keys of each query: (1, 1, q_len, keys)"""
    return (s.key <= s.query) & (s.key > s.query - 21)


def hole(s: MaskSizes) -> Tensor:
    """The middle third hidden, seen through a key stride of 2: (batch, 1, 1, keys)"""
    visible = (s.key < s.valid) & ((s.key < s.valid // 3) | (s.key >= 2 * s.valid // 3))
    return visible.expand(s.batch, 1, 1, s.keys).repeat_interleave(2, dim=-1)[..., ::2]


def per_head(s: MaskSizes) -> Tensor:
    """Each head sees other keys: (1, heads, 1, keys)"""
    return (s.noise(1, s.heads, 1, s.keys) < 0.5) & (s.key < s.valid)


def per_row(s: MaskSizes) -> Tensor:
    """Each query of each head of each sequence sees other keys, and every fifth none: (batch, heads, q_len, keys)"""
    noise = s.noise(s.batch, s.heads, s.q_len, s.keys)
    seeing = torch.arange(s.batch * s.heads * s.q_len).reshape(s.batch, s.heads, s.q_len, 1) % 5 != 3
    return (noise < 0.3) & (s.key < s.valid) & seeing


def additive_inf(s: MaskSizes) -> Tensor:
    """-inf outside, ordinary values inside: (batch, 1, 1, keys)"""
    return _hide(s, s.noise(s.batch, 1, 1, s.keys) - 0.5, left_padding(s), NEG_INF)


def additive_min(s: MaskSizes) -> Tensor:
    """What HF's eager attention adds, on queries that see something: (batch, 1, q_len, keys)"""
    visible = left_padding(s) & (s.key <= s.query.clamp(min=s.valid - 1))
    return _hide(s, torch.zeros(s.batch, 1, s.q_len, s.keys), visible, torch.finfo(s.dtype).min)


def alibi(s: MaskSizes) -> Tensor:
    """A linear bias per head and query, with causality, in the dtype of q: (1, heads, q_len, keys)"""
    slopes = torch.logspace(-1, -8, s.heads, base=2)[None, :, None, None]
    return _hide(s, slopes * (s.key - s.query), s.key <= s.query, NEG_INF)


def float32_bias(s: MaskSizes) -> Tensor:
    """A bias that hides nothing, in float32 whatever the dtype of q: (1, heads, 1, keys)"""
    return 4 * s.noise(1, s.heads, 1, s.keys) - 2


def _hide(s: MaskSizes, bias: Tensor, visible: Tensor, hidden_value: float) -> Tensor:
    return bias.to(s.dtype).masked_fill(visible.logical_not(), hidden_value)


MASKS: dict[str, Callable[[MaskSizes], Tensor]] = {
    build.__name__: build
    for build in (
        prefix,
        ragged,
        left_padding,
        left_padded_causal,
        window,
        hole,
        per_head,
        per_row,
        additive_inf,
        additive_min,
        alibi,
        float32_bias,
    )
}


def visible_keys(mask: Tensor, keys: int) -> Tensor:
    """Keys to which some query gives a weight above 0, by softmax of the mask alone in float64: bool (1|batch, keys)"""
    additive = mask.double() if mask.is_floating_point() else torch.where(mask, 0.0, NEG_INF).double()
    weights = torch.softmax(additive.expand(*mask.shape[:3], keys), dim=-1)
    return (weights > 0).any(2).any(1)
