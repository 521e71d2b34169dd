"""Speculative decoding by trees: 2 to 16 new tokens, of which each sees the cache, itself and its ancestors.

After a step the keys and values of the accepted branch are moved together, and the others are overwritten by the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind

from .graph import DEVICE, Draw, Golden, Inputs, heads_first, note, repeat_kv

BATCH, HEADS, KV_HEADS, CAPACITY, DIM, HELD, STEPS = 2, 4, 2, 40, 16, 5, 3


def _ancestors(size: int, seed: int) -> Tensor:
    """Bool (size, size) of a random tree: row i is True for i and its ancestors, which come before it."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.eye(size, dtype=torch.bool)
    for node in range(1, size):
        seen[node] |= seen[int(torch.randint(node, (), generator=generator))]
    return seen


def _mask(tree: Tensor, held: Tensor) -> Tensor:
    """(1|batch, 1, q_len, capacity): the keys held, and those of the tree behind them. ``tree`` (1|batch, q, q)."""
    size = tree.shape[-1]
    positions = torch.arange(CAPACITY, device=held.device)
    at = torch.arange(size, device=held.device) + held
    behind = torch.zeros(tree.shape[0], size, CAPACITY, dtype=torch.bool, device=held.device)
    return ((positions < held) | behind.index_copy(2, at, tree))[:, None]


def _by_sdpa(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)


def _by_products(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    note(q, keys, values, mask, 1 / math.sqrt(DIM), None, None)
    added = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -math.inf)
    scores = torch.matmul(q, repeat_kv(keys, 2).transpose(2, 3)) / math.sqrt(DIM) + added
    return torch.matmul(torch.softmax(scores, -1), repeat_kv(values, 2))


@dataclass(frozen=True)
class Tree:
    """Steps of one tree. ``trees`` is how many there are: one for all sequences, or one for each. ``accepted`` are
    those of its tokens that are kept."""

    name: str
    q_len: int = 7
    trees: int = 1
    products: bool = False
    accepted: tuple[int, ...] = (0,)
    seed: int = 0

    @property
    def golden(self) -> Golden:
        recogniser = "recognise_softmax_chain" if self.products else "recognise_marked_sdpa"
        return Golden(self.name, self.program(), self.steps, (self.spec(),), recogniser)

    def program(self) -> Callable[..., Tensor]:
        attend = _by_products if self.products else _by_sdpa

        def step(
            q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, held: Tensor, tree: Tensor, accepted: Tensor
        ) -> Tensor:
            at = torch.arange(q.shape[2], device=q.device) + held
            keys.index_copy_(2, at, k)
            values.index_copy_(2, at, v)
            out = attend(q, keys, values, _mask(tree, held))
            kept = torch.arange(accepted.shape[0], device=q.device) + held
            for cache in (keys, values):
                cache.index_copy_(2, kept, cache.index_select(2, accepted + held))
            held.add_(accepted.shape[0])
            return out

        return step

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(self.q_len)
        tree = torch.stack([_ancestors(self.q_len, seed) for seed in range(self.seed, self.seed + self.trees)])
        inputs = {
            "q": draw.normal(BATCH, HEADS, self.q_len, DIM),
            "k": draw.normal(BATCH, KV_HEADS, self.q_len, DIM),
            "v": draw.normal(BATCH, KV_HEADS, self.q_len, DIM),
            "keys": draw.normal(BATCH, KV_HEADS, CAPACITY, DIM),
            "values": draw.normal(BATCH, KV_HEADS, CAPACITY, DIM),
            "held": torch.tensor(HELD, device=DEVICE),
            "tree": tree.to(DEVICE),
            "accepted": torch.tensor(self.accepted, device=DEVICE),
        }
        return [inputs] * STEPS

    def spec(self) -> AttentionSpec:
        return AttentionSpec(
            batch=BATCH,
            query_heads=HEADS,
            kv_heads=KV_HEADS,
            q_len=self.q_len,
            kv_len=CAPACITY,
            head_dim=DIM,
            value_dim=DIM,
            dtype=torch.float32,
            scale=1 / math.sqrt(DIM),
            key_layout=heads_first(KV_HEADS, CAPACITY, DIM),
            value_layout=heads_first(KV_HEADS, CAPACITY, DIM),
            mask=MaskKind.ADDITIVE if self.products else MaskKind.BOOL,
            mask_dtype=torch.float32 if self.products else torch.bool,
            mask_per_row=True,
        )


TREES: tuple[Tree, ...] = (
    Tree("tree_of_2", q_len=2),
    Tree("tree_of_7", accepted=(0, 2, 5)),
    Tree("trees_of_sequences", trees=BATCH, accepted=(0, 3)),
    Tree("tree_of_16", q_len=16, accepted=(0, 1, 4, 9)),
    Tree("tree_by_products", products=True, accepted=(0, 4)),
)
GOLDEN = tuple(tree.golden for tree in TREES)
