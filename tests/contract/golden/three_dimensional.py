"""SDPA of three dimensions: (heads, length, dim), of one sequence or with the batch among the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout

from .graph import Draw, Golden, Inputs, each_head_by_itself, heads_first
from .hand_masks import build_mask

HEADS, KV_LEN, DIM = 6, 20, 16


@dataclass(frozen=True)
class Flat:
    """One call. KV heads are repeated by the program, broadcast where there is one, or left to ``enable_gqa``."""

    name: str
    kv_heads: int = HEADS
    q_len: int = 3
    mask: str | None = None
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False
    dtype: torch.dtype = torch.float32

    heads = HEADS
    length_dim = 1

    @property
    def golden(self) -> Golden:
        return Golden(self.name, self.program(), self.steps, (self.spec(),))

    def program(self) -> Callable[..., Tensor]:
        repeats = 1 if self.enable_gqa or self.kv_heads == 1 else HEADS // self.kv_heads
        is_causal, scale, enable_gqa = self.is_causal, self.scale, self.enable_gqa

        def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
            if repeats > 1:
                keys, values = keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)
            out = functional.scaled_dot_product_attention(
                q, key=keys, value=values, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
            )
            return out.unsqueeze(0)

        return attend

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(9, self.dtype)
        sizes = {"H": HEADS, "q": self.q_len, "S": KV_LEN}
        return [
            {
                "q": draw.normal(HEADS, self.q_len, DIM),
                "keys": draw.normal(self.kv_heads, KV_LEN, DIM),
                "values": draw.normal(self.kv_heads, KV_LEN, DIM),
                "mask": None if self.mask is None else build_mask(self.mask, sizes, self.dtype),
            }
        ]

    def spec(self) -> AttentionSpec:
        kind = MaskKind.NONE
        if self.mask is not None:
            kind = MaskKind.BOOL if self.mask.startswith("bool") else MaskKind.ADDITIVE
        mask_dtypes = {MaskKind.NONE: None, MaskKind.BOOL: torch.bool, MaskKind.ADDITIVE: self.dtype}
        spec = AttentionSpec(
            batch=1,
            query_heads=HEADS,
            kv_heads=self.kv_heads,
            q_len=self.q_len,
            kv_len=KV_LEN,
            head_dim=DIM,
            value_dim=DIM,
            dtype=self.dtype,
            scale=1 / math.sqrt(DIM) if self.scale is None else self.scale,
            key_layout=self._layout(),
            value_layout=self._layout(),
            mask=kind,
            mask_dtype=mask_dtypes[kind],
            mask_per_row=self.mask is not None and not self.mask.endswith("-1.1.S"),
            is_causal=self.is_causal,
        )
        by_head = kind is MaskKind.BOOL and str(self.mask).split("-")[1].startswith("H") and self.kv_heads > 1
        return each_head_by_itself(spec) if by_head else spec

    def _layout(self) -> TensorLayout:
        if self.kv_heads in (1, HEADS) or self.enable_gqa:
            return heads_first(self.kv_heads, KV_LEN, DIM)
        # Seen before the repetition; the batch stride of one sequence means nothing.
        return TensorLayout(KV_LEN * DIM, KV_LEN * DIM, DIM)


FLAT: tuple[Flat, ...] = (
    Flat("flat"),
    Flat("flat_repeated", kv_heads=2, mask="bool-H.1.S"),
    Flat("flat_one_kv_head", kv_heads=1, mask="bias-q.S", q_len=16),
    Flat("flat_grouped", kv_heads=3, enable_gqa=True, mask="inf-1.1.S", q_len=1),
    Flat("flat_causal", is_causal=True, scale=-0.4),
    Flat("flat_bfloat16", mask="min-H.q.S", dtype=torch.bfloat16),
)
GOLDEN = tuple(flat.golden for flat in FLAT)
