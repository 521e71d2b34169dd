"""SDPA as people write it by hand: spellings of grouped queries, masks, scales, causality, sizes and layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout

from . import spellings
from .graph import Draw, Golden, Inputs, each_head_by_itself, heads_first, length_first
from .hand_masks import KINDS, SHAPES, build_mask
from .spellings import Spelling


@dataclass(frozen=True)
class HandWritten:
    """One call of SDPA. K is spelt by ``spelling`` and so is V, unless ``value_spelling`` says otherwise.

    ``grouped`` tells whether the stored heads must be recognised under the spelling, ``length_first`` how they lie.
    """

    name: str
    batch: int = 2
    kv_heads: int = 2
    group: int = 2
    q_len: int = 1
    kv_len: int = 20
    head_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    mask: str | None = None
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False
    spelling: Spelling = spellings.repeat_kv
    value_spelling: Spelling | None = None
    grouped: bool = True
    length_first: bool = False

    @property
    def golden(self) -> Golden:
        return Golden(self.name, self.program(), self.steps, (self.spec(),))

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def length_dim(self) -> int:
        """Of keys and values."""
        return 1 if self.length_first else 2

    def program(self) -> Callable[..., Tensor]:
        key_spelling, value_spelling = self.spelling, self.value_spelling or self.spelling
        group, is_causal, scale, enable_gqa = self.group, self.is_causal, self.scale, self.enable_gqa

        def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
            k, v = key_spelling(keys, group), value_spelling(values, group)
            return functional.scaled_dot_product_attention(
                q, k, v, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
            )

        return attend

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(self.kv_len, self.dtype)
        heads = self.kv_heads * self.group
        stored = (self.kv_len, self.kv_heads) if self.length_first else (self.kv_heads, self.kv_len)
        sizes = {"B": self.batch, "H": heads, "q": self.q_len, "S": self.kv_len}
        return [
            {
                "q": draw.normal(self.batch, heads, self.q_len, self.head_dim),
                "keys": draw.normal(self.batch, *stored, self.head_dim),
                "values": draw.normal(self.batch, *stored, self.value_dim),
                "mask": None if self.mask is None else build_mask(self.mask, sizes, self.dtype),
            }
        ]

    def spec(self) -> AttentionSpec:
        seen_heads = self.kv_heads if self.grouped else self.kv_heads * self.group
        rows = (self.mask or "").partition("-")[2].split(".")[:-1]
        kind = MaskKind.NONE if self.mask is None else MaskKind.ADDITIVE
        if self.mask is not None and self.mask.startswith("bool"):
            kind = MaskKind.BOOL
        mask_dtypes = {MaskKind.NONE: None, MaskKind.BOOL: torch.bool, MaskKind.ADDITIVE: self.dtype}
        spec = AttentionSpec(
            batch=self.batch,
            query_heads=self.kv_heads * self.group,
            kv_heads=seen_heads,
            q_len=self.q_len,
            kv_len=self.kv_len,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            dtype=self.dtype,
            scale=1 / math.sqrt(self.head_dim) if self.scale is None else self.scale,
            key_layout=self._layout(seen_heads, self.head_dim),
            value_layout=self._layout(seen_heads, self.value_dim),
            mask=kind,
            mask_dtype=mask_dtypes[kind],
            mask_per_row=bool(("H" in rows and self.kv_heads * self.group > 1) or ("q" in rows and self.q_len > 1)),
            is_causal=self.is_causal,
        )
        by_head = kind is MaskKind.BOOL and rows[:2] == ["B", "H"] and seen_heads > 1 and not self.length_first
        return each_head_by_itself(spec) if by_head else spec

    def _layout(self, heads: int, dim: int) -> TensorLayout:
        return (length_first if self.length_first else heads_first)(heads, self.kv_len, dim)


_GQA: dict[str, Any] = {"spelling": spellings.as_stored, "enable_gqa": True}
_SPELLINGS = [
    HandWritten("enable_gqa", **_GQA),
    HandWritten("repeat_kv", spelling=spellings.repeat_kv),
    HandWritten("repeat_interleave", spelling=spellings.interleaved, mask="bool-1.1.1.S"),
    HandWritten("expand_flatten", spelling=spellings.expanded_unflattened),
    HandWritten("repeat_copy_view", spelling=spellings.repeated_then_copied),
    HandWritten("plain", spelling=spellings.as_stored, group=1),
    HandWritten("one_kv_head_broadcast", spelling=spellings.as_stored, kv_heads=1, group=4, mask="bool-B.1.1.S"),
    HandWritten("one_kv_head_repeated", kv_heads=1, group=4, mask="bool-B.1.1.S"),
    HandWritten("stored_length_first", spelling=spellings.transposed, enable_gqa=True, length_first=True),
    HandWritten("repeated_length_first", spelling=spellings.repeated_length_first, length_first=True),
    HandWritten("repeat_kv_then_gqa", spelling=spellings.repeat_kv, enable_gqa=True),
    HandWritten("tiled", spelling=spellings.tiled, grouped=False),
    HandWritten("tiled_by_expand", spelling=spellings.tiled_by_expand, grouped=False),
    HandWritten("gathered", spelling=spellings.gathered, grouped=False),
    HandWritten("only_key_visible", value_spelling=spellings.gathered, grouped=False),
    HandWritten("only_value_visible", spelling=spellings.gathered, value_spelling=spellings.repeat_kv, grouped=False),
    HandWritten("key_repeated_value_interleaved", value_spelling=spellings.interleaved),
    HandWritten("key_grouped_value_tiled", value_spelling=spellings.tiled_by_expand, grouped=False),
]
_SCALES = [
    HandWritten(f"scale_{scale}", scale=scale, **_GQA) for scale in (0.3, -0.5, 2, 0.0)
] + [HandWritten("default_scale_of_72", head_dim=72, value_dim=72, **_GQA)]  # fmt: skip
_CAUSAL = [
    HandWritten("causal_one_query_sees_one_key", is_causal=True, **_GQA),
    HandWritten("causal_repeat_kv", is_causal=True, q_len=4),
    HandWritten("causal_more_queries_than_keys", is_causal=True, q_len=7, kv_len=3, **_GQA),
]
_SIZES = [
    *(HandWritten(f"group_{group}", group=group, mask="bool-B.1.q.S") for group in (1, 3, 6, 7, 71)),
    *(HandWritten(f"q_len_{q_len}", q_len=q_len, mask="bool-B.1.q.S", **_GQA) for q_len in (2, 5, 16)),
    HandWritten("wide_keys", head_dim=24, value_dim=8, mask="inf-B.1.1.S", **_GQA),
    HandWritten("wide_values", head_dim=8, value_dim=256, **_GQA),
    HandWritten("one_key", kv_len=1, **_GQA),
    HandWritten("one_sequence", batch=1, mask="bool-1.1.1.S", **_GQA),
    HandWritten("length_one_block_and_one", kv_len=129, mask="bool-B.1.1.S", **_GQA),
]
_MASKS = [HandWritten(f"{kind}-{shape}", mask=f"{kind}-{shape}", q_len=3, **_GQA) for kind in KINDS for shape in SHAPES]
_DTYPES = [
    HandWritten(f"{str(dtype).removeprefix('torch.')}_{kind}", dtype=dtype, mask=f"{kind}-B.1.q.S", q_len=2, **_GQA)
    for dtype in (torch.float16, torch.bfloat16)
    for kind in KINDS
]

HAND_WRITTEN = (*_SPELLINGS, *_SCALES, *_CAUSAL, *_SIZES, *_MASKS, *_DTYPES)
GOLDEN = tuple(hand_written.golden for hand_written in HAND_WRITTEN)
