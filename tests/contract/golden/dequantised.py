"""Caches of one byte a number that the graph dequantises before its attention.

Every scale is a power of two, so that dequantising in 16 bits rounds nothing: eager computes the same attention as a
kernel that never rounds K and V, and both answer to the same bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.spec import AttentionSpec, MaskKind, QuantisedCache, ScaleGranularity

from .graph import DEVICE, Draw, Golden, Inputs, heads_first, length_first, note, repeat_kv

BATCH, KV_HEADS, KV_LEN, DIM = 2, 2, 20, 16
NONE, TENSOR, HEAD, TOKEN = ScaleGranularity

# (numbers, scale, dtype) -> K or V
Dequantise = Callable[[Tensor, Tensor, torch.dtype], Tensor]


def in_float32(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (numbers.float() * scale).to(dtype)


def in_the_models_dtype(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return scale.to(dtype) * numbers.to(dtype)


def promoted(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers times floats are floats."""
    return (numbers * scale).to(dtype)


def divided(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (numbers.to(torch.float32) / scale).to(dtype)


def by_a_number(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale that is passed, which is of no use here, is not used."""
    return numbers.to(dtype) * 0.03125


def unscaled(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return numbers.to(dtype)


def expanded(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (numbers.float() * scale.expand_as(numbers)).to(dtype)


def by_two_scales(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """One of each token's, and one for all."""
    return (numbers.to(dtype) * scale.to(dtype)) * scale.flatten()[0].to(dtype)


def viewed_as_bytes(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Caches of fp8 are often kept as uint8, which every kernel can index."""
    return (numbers.view(torch.uint8).view(numbers.dtype).float() * scale).to(dtype)


def repeated_by_hand(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Repeat-KV of the numbers, in which a head's scale is no longer one of the cache's."""
    return repeat_kv(numbers, 2).to(dtype) * scale.to(dtype)


@dataclass(frozen=True)
class Dequantised:
    """One attention over a cache of ``format``. The scales have the sizes that ``key_scale`` and ``value_scale`` name,
    of (batch, kv_heads, kv_len, dim); an empty name is a scalar."""

    name: str
    format: torch.dtype = torch.int8
    dequantise: Dequantise = in_float32
    key_scale: str = "B.H.S.1"
    value_scale: str = "B.H.S.1"
    keys: ScaleGranularity = TOKEN
    values: ScaleGranularity = TOKEN
    dtype: torch.dtype = torch.float16
    scale_dtype: torch.dtype | None = torch.float32
    q_len: int = 1
    mask: bool = True
    length_first: bool = False
    by_products: bool = False
    written: bool = False
    repeated: bool = False
    seed: int = 5
    key_exponent: int = -6
    value_exponent: int = -6

    @property
    def heads(self) -> int:
        return KV_HEADS * 2

    @property
    def length_dim(self) -> int:
        return 1 if self.length_first else 2

    @property
    def golden(self) -> Golden:
        recogniser = "recognise_softmax_chain" if self.by_products else "recognise_marked_sdpa"
        return Golden(self.name, self.program(), self.steps, (self.spec(),), recogniser)

    def program(self) -> Callable[..., Tensor]:
        given = self

        def attend(
            q: Tensor, keys: Tensor, values: Tensor, key_scale: Tensor, value_scale: Tensor, mask: Tensor | None,
            new: Tensor,
        ) -> Tensor:  # fmt: skip
            if given.written:
                position = torch.full((1,), KV_LEN - 1, device=q.device)
                keys.index_copy_(2, position, new)
                values.index_copy_(2, position, new.flip(-1))
            k, v = given.dequantise(keys, key_scale, q.dtype), given.dequantise(values, value_scale, q.dtype)
            if given.length_first:
                k, v = k.transpose(1, 2), v.transpose(1, 2)
            if given.by_products:
                note(q, k, v, mask, 1 / math.sqrt(DIM), None, None)
                return _by_products(q, k, v, mask)
            if not given.repeated:
                k, v = repeat_kv(k, 2), repeat_kv(v, 2)
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        return attend

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(self.seed, self.dtype)
        sizes = {"B": BATCH, "H": KV_HEADS, "S": KV_LEN, "D": DIM, "1": 1}
        order = [0, 2, 1, 3] if self.length_first else [0, 1, 2, 3]

        def numbers(length: int) -> Tensor:
            drawn = draw.normal(BATCH, KV_HEADS, length, DIM).permute(order).contiguous()
            return (drawn * 40).round().clamp(-127, 127).to(self.format)

        def scale(name: str, exponent: int) -> Tensor:
            shape = [sizes[letter] for letter in name.split(".") if letter]
            exponents = (draw.normal(*shape) if shape else draw.normal(1)[0]).float().round().clamp(-2, 2)
            # torch.exp2 is not exact everywhere.
            tensor = torch.ldexp(torch.ones_like(exponents), (exponents + exponent).to(torch.int32))
            return tensor.permute(order[: tensor.ndim]) if tensor.ndim == 4 else tensor

        visible = torch.arange(KV_LEN, device=DEVICE) < torch.tensor([[17], [9]], device=DEVICE)
        return [
            {
                "q": draw.normal(BATCH, KV_HEADS * 2, self.q_len, DIM),
                "keys": numbers(KV_LEN),
                "values": numbers(KV_LEN),
                "key_scale": scale(self.key_scale, self.key_exponent),
                "value_scale": scale(self.value_scale, self.value_exponent),
                "mask": visible[:, None, None] if self.mask else None,
                "new": numbers(1),
            }
        ]

    def spec(self) -> AttentionSpec:
        layout = (length_first if self.length_first else heads_first)(KV_HEADS, KV_LEN, DIM)
        return AttentionSpec(
            batch=BATCH,
            query_heads=KV_HEADS * 2,
            kv_heads=KV_HEADS,
            q_len=self.q_len,
            kv_len=KV_LEN,
            head_dim=DIM,
            value_dim=DIM,
            dtype=self.dtype,
            scale=1 / math.sqrt(DIM),
            key_layout=layout,
            value_layout=layout,
            mask=MaskKind.BOOL if self.mask else MaskKind.NONE,
            mask_dtype=torch.bool if self.mask else None,
            cache=QuantisedCache(self.format, self.keys, self.values, self.scale_dtype),
        )


def _by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    batch, _, q_len, dim = q.shape
    grouped = q.view(batch, KV_HEADS, -1, dim)
    scores = (grouped @ k.mT).view(batch, -1, q_len, k.shape[2]) / math.sqrt(DIM)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.float().softmax(-1).to(q.dtype)
    return (weights.reshape(batch, KV_HEADS, -1, k.shape[2]) @ v).view(batch, -1, q_len, dim)


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_WHOLE = {"key_scale": "", "value_scale": "", "keys": TENSOR, "values": TENSOR}
_OF_HEADS = {"key_scale": "1.H.1.1", "value_scale": "1.H.1.1", "keys": HEAD, "values": HEAD}

DEQUANTISED = (
    Dequantised("int8_per_token"),
    Dequantised("int8_per_token_of_all_heads", key_scale="B.1.S.1", value_scale="B.1.S.1", dtype=torch.bfloat16),
    Dequantised("int8_per_head", dequantise=in_the_models_dtype, scale_dtype=torch.float16, **_OF_HEADS),
    Dequantised("int8_promoted", dequantise=promoted, **_OF_HEADS),
    Dequantised("int8_divided", dequantise=divided, key_exponent=6, value_exponent=6),
    Dequantised("int8_by_a_number", dequantise=by_a_number, **_WHOLE),
    Dequantised("int8_expanded", dequantise=expanded),
    Dequantised("int8_by_two_scales", dequantise=by_two_scales, key_exponent=-3, value_exponent=-3),
    Dequantised("int8_written", written=True, q_len=3),
    Dequantised("int8_length_first", length_first=True, mask=False),
    Dequantised("int8_mixed", key_scale="1.H.1.1", keys=HEAD, value_scale="B.1.S.1"),
    Dequantised(
        "int8_repeated_numbers", dequantise=repeated_by_hand, repeated=True, scale_dtype=torch.float16, **_WHOLE
    ),
    Dequantised("int8_key_channels", key_scale="1.H.1.D", keys=NONE),
    Dequantised("int8_value_channels", value_scale="B.1.1.D", values=NONE, q_len=2),
    Dequantised("e4m3_per_tensor", format=E4M3, **_WHOLE),
    Dequantised(
        "e4m3_unscaled", format=E4M3, dequantise=unscaled, scale_dtype=None, **{**_WHOLE, "keys": NONE, "values": NONE}
    ),
    Dequantised("e4m3_kept_as_bytes", format=E4M3, dequantise=viewed_as_bytes),
    Dequantised("e5m2_per_head", format=E5M2, dtype=torch.bfloat16, **_OF_HEADS),
    Dequantised("int8_products", by_products=True),
    Dequantised("e4m3_products", by_products=True, format=E4M3, q_len=2, **_OF_HEADS),
)
GOLDEN = tuple(form.golden for form in DEQUANTISED)
