"""Latent attention: K and V expanded from a cache of latents, in the spellings of models, or already absorbed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout

from .graph import DEVICE, Draw, Golden, Inputs, heads_first, note

BATCH, HEADS, KV_LEN = 2, 4, 21
LATENT, ROPE, NOPE, VALUE = 32, 16, 24, 40
SCALE = 0.2

Expand = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def by_writes(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As transformers' DeepSeek-V3: one projection, split, and written into an empty tensor. ``latent`` and ``rope``
    (batch, 1, keys, columns), ``weight`` (heads * (NOPE + VALUE), LATENT)."""
    batch, _, keys, _ = latent.shape
    both = functional.linear(latent, weight).view(batch, keys, -1, NOPE + VALUE).transpose(1, 2)
    nope, value = torch.split(both, [NOPE, VALUE], dim=-1)
    key = nope.new_empty(*nope.shape[:-1], NOPE + ROPE)
    key[..., :NOPE] = nope
    key[..., NOPE:] = rope.expand(-1, nope.shape[1], -1, -1)
    return key, value


def by_cat(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``cat`` of the columns, after two slices."""
    both = functional.linear(latent[:, 0], weight).unflatten(-1, (-1, NOPE + VALUE)).transpose(1, 2)
    nope, value = both[..., :NOPE], both[..., NOPE:]
    return torch.cat([nope, rope.expand(*nope.shape[:-1], ROPE)], -1), value


def rope_first(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    key, value = by_cat(latent, rope, weight)
    return torch.cat([key[..., NOPE:], key[..., :NOPE]], -1), value


def by_einsum(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two products by head, of parts of the weight."""
    of_heads = weight.view(-1, NOPE + VALUE, LATENT)
    nope = torch.einsum("bsl,hdl->bhsd", latent[:, 0], of_heads[:, :NOPE])
    value = torch.einsum("bsl,hdl->bhsd", latent[:, 0], of_heads[:, NOPE:])
    return torch.cat([nope, rope.expand(*nope.shape[:-1], ROPE)], -1), value


def by_matmul(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of products: latents broadcast to heads."""
    of_heads = weight.view(-1, NOPE + VALUE, LATENT)
    both = latent @ of_heads.mT
    return torch.cat([both[..., :NOPE], rope.expand(*both.shape[:-1], ROPE)], -1), both[..., NOPE:]


def with_bias(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    bias = weight.sum(-1)
    both = functional.linear(latent[:, 0], weight, bias).unflatten(-1, (-1, NOPE + VALUE)).transpose(1, 2)
    return torch.cat([both[..., :NOPE], rope.expand(*both.shape[:3], ROPE)], -1), both[..., NOPE:]


def latents_of_heads(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each head has latents of its own."""
    of_heads = weight.view(-1, NOPE + VALUE, LATENT)
    turned = torch.stack([latent[:, 0].roll(head, -1) for head in range(HEADS)], 1)
    both = turned @ of_heads.mT
    return torch.cat([both[..., :NOPE], rope.expand(*both.shape[:3], ROPE)], -1), both[..., NOPE:]


def values_of_others(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """V is made of other latents than K."""
    key, _ = by_cat(latent, rope, weight)
    return key, by_cat(latent.flip(2), rope, weight)[1]


def values_of_other_sequences(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The same tensor of latents, its sequences and keys in each other's place."""
    key, _ = by_cat(latent, rope, weight)
    return key, by_cat(latent.flip(0), rope, weight)[1]


def weights_of_other_heads(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return by_cat(latent, rope, weight.view(HEADS, -1, LATENT).flip(0).flatten(0, 1))


def values_of_first_columns(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """K and V in each other's columns of the weight."""
    both = functional.linear(latent[:, 0], weight).unflatten(-1, (-1, NOPE + VALUE)).transpose(1, 2)
    value, nope = both[..., :VALUE], both[..., VALUE:]
    return torch.cat([nope, rope.expand(*nope.shape[:-1], ROPE)], -1), value


def gap_in_keys(latent: Tensor, rope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Some columns of K are neither latents' nor rotary."""
    key, value = by_cat(latent, rope, weight)
    return torch.cat([key[..., : NOPE - 8], torch.ones_like(key[..., :8]), key[..., NOPE:]], -1), value


@dataclass(frozen=True)
class Latent:
    """One attention. ``in_one``: latents and rotary keys are columns of one cache. ``absorbed``: queries and results
    are taken to latents and back by the model; ``rope_leads`` then has the rotary keys first. ``expand`` is how K and
    V are made otherwise."""

    name: str
    expand: Expand = by_cat
    in_one: bool = False
    absorbed: bool = False
    by_products: bool = False
    growing: bool = False
    masked: bool = True
    q_len: int = 1
    scale: float = SCALE
    rope_factor: float = 1.0
    dtype: torch.dtype = torch.float32
    latent_dim: int = LATENT
    rope_leads: bool = False

    @property
    def golden(self) -> Golden:
        recogniser = "recognise_softmax_chain" if self.by_products else "recognise_marked_sdpa"
        return Golden(self.name, self.program(), self.steps, self.specs(), recogniser)

    def program(self) -> Callable[..., Tensor]:
        given = self

        def attend(
            q: Tensor, latent: Tensor, rope: Tensor, weight: Tensor, held: Tensor, new: Tensor, new_rope: Tensor,
            mask: Tensor | None,
        ) -> Tensor:  # fmt: skip
            if given.in_one:
                latent, rope = latent.split([given.latent_dim, ROPE], -1)
            elif given.growing:
                latent, rope = torch.cat([latent, new], 2), torch.cat([rope, new_rope], 2)
            else:
                latent[:, :, held] = new
                rope[:, :, held] = new_rope
            if given.absorbed:
                k = torch.cat([rope, latent] if given.rope_leads else [latent, rope], -1)
                v = latent
                if given.by_products:
                    k, v = (x.expand(-1, HEADS, -1, -1) for x in (k, v))
            else:
                k, v = given.expand(latent, rope * given.rope_factor if given.rope_factor != 1 else rope, weight)
            if not given.by_products:
                return functional.scaled_dot_product_attention(
                    q, k, v, mask, scale=given.scale, enable_gqa=given.absorbed
                )
            added = None if mask is None else torch.where(mask, 0.0, float("-inf"))
            note(q, k, v, added, given.scale, None, None)
            scores = q @ k.mT * given.scale
            return (scores if added is None else scores + added).softmax(-1) @ v

        return attend

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(31, self.dtype)
        columns = self.latent_dim + ROPE if self.absorbed else NOPE + ROPE
        length = KV_LEN - 4 if self.growing else KV_LEN
        steps = []
        for step in range(3 if self.growing else 1):
            held = KV_LEN - 5
            keys = length + step + 1 if self.growing else length
            visible = torch.arange(keys, device=DEVICE) <= torch.tensor([[held], [held - 7]], device=DEVICE)
            steps.append(
                {
                    "q": draw.normal(BATCH, HEADS, self.q_len, columns),
                    "latent": draw.normal(BATCH, 1, length + step, self.latent_dim + (ROPE if self.in_one else 0)),
                    "rope": draw.normal(BATCH, 1, length + step, ROPE),
                    "weight": draw.normal(HEADS * (NOPE + VALUE), self.latent_dim) / math.sqrt(self.latent_dim),
                    "held": torch.tensor([held], device=DEVICE),
                    "new": draw.normal(BATCH, 1, 1, self.latent_dim),
                    "new_rope": draw.normal(BATCH, 1, 1, ROPE),
                    "mask": visible[:, None, None] if self.masked else None,
                }
            )
        return steps

    def specs(self) -> tuple[AttentionSpec, ...]:
        if not self.growing:
            return (self._spec(KV_LEN),)
        return self._spec(KV_LEN - 3), self._spec(KV_LEN - 2, symbolic=True)

    def _spec(self, kv_len: int, symbolic: bool = False) -> AttentionSpec:
        kind = MaskKind.NONE if not self.masked else MaskKind.ADDITIVE if self.by_products else MaskKind.BOOL
        masks = {MaskKind.NONE: None, MaskKind.BOOL: torch.bool, MaskKind.ADDITIVE: self.dtype}
        row = self.latent_dim + ROPE
        joint = TensorLayout(kv_len * row, kv_len * row, row)
        latents = joint if self.in_one else heads_first(1, kv_len, self.latent_dim)
        return AttentionSpec(
            batch=BATCH,
            query_heads=HEADS,
            kv_heads=1,
            q_len=self.q_len,
            kv_len=kv_len,
            head_dim=self.latent_dim,
            value_dim=self.latent_dim,
            dtype=self.dtype,
            scale=self.scale,
            key_layout=latents,
            value_layout=latents,
            mask=kind,
            mask_dtype=masks[kind],
            symbolic=frozenset({"kv_len"} if symbolic else ()),
            rope_dim=ROPE,
            rope_layout=joint if self.in_one else heads_first(1, kv_len, ROPE),
        )


LATENT_FORMS = (
    Latent("latent_by_writes", by_writes),
    Latent("latent_by_cat", by_cat, q_len=3),
    Latent("latent_rope_first", rope_first),
    Latent("latent_by_einsum", by_einsum, masked=False),
    Latent("latent_by_matmul", by_matmul),
    Latent("latent_growing", by_writes, growing=True, masked=False),
    Latent("latent_in_one", by_cat, in_one=True),
    Latent("latent_products", by_writes, by_products=True),
    Latent("latent_absorbed", absorbed=True),
    Latent("latent_absorbed_in_one", absorbed=True, in_one=True, q_len=2),
    Latent("latent_absorbed_products", absorbed=True, by_products=True),
    Latent("latent_absorbed_wide", absorbed=True, latent_dim=256),
)
GOLDEN = tuple(form.golden for form in LATENT_FORMS)
