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

from prefetch_compiler.spec import AttentionSpec, MaskKind, QuantisedCache, ScaleGranularity, Storage

from .graph import DEVICE, Draw, Golden, Inputs, heads_first, length_first, note, repeat_kv

BATCH, KV_HEADS, KV_LEN, DIM = 2, 2, 20, 16
NONE, TENSOR, HEAD, TOKEN, GROUP = ScaleGranularity

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


def less_zeros(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return ((numbers.float() - zero_like(scale)) * scale).to(dtype)


def plus_zeros(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return ((numbers.float() + zero_like(scale)) * scale).to(dtype)


def plus_minima(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (numbers.float() * scale + zero_like(scale) * scale.flatten()[0]).to(dtype)


def less_a_number(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (numbers.to(dtype) - 128) * scale.to(dtype)


def less_integers(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero points are integers, and so is the difference."""
    return ((numbers.to(torch.int32) - zero_like(scale).to(torch.int8).to(torch.int32)).float() * scale).to(dtype)


def plus_the_opposite(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (scale * (-zero_like(scale) + numbers)).to(dtype)


def taken_from(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return ((7 - numbers.to(torch.int32)) * scale).to(dtype)


def zeros_and_minima(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A zero point for all, and minima of tokens."""
    return ((numbers.float() - 3) * scale - zero_like(scale) * 0.125).to(dtype)


def of_column_groups(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Every eight channels of a token share a scale and a zero, which is a whole number."""
    scales = torch.stack([scale, scale * 2], -2)
    return ((numbers.float().unflatten(-1, (2, 8)) - zero_like(scales)) * scales).flatten(-2).to(dtype)


def of_column_groups_unzeroed(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    shape = numbers.shape
    scales = torch.cat([scale, scale * 4], -1).unsqueeze(-1)
    return (numbers.to(dtype).view(*shape[:-1], 2, 8) * scales.to(dtype)).reshape(shape)


def in_rows_of_groups(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """As optimum-quanto has it: one row for every eight numbers, times a scale, less a shift."""
    scales = torch.stack([scale, scale * 2], -2).reshape(-1, 1)
    shifts = scales * zero_like(scales)
    return (scales * numbers.reshape(-1, 8) - shifts).view(numbers.shape).to(dtype)


def in_rows_of_tokens(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """As HQQ has it, of eight bits and groups of a head: one row for every token, less a zero point, times a scale."""
    scales = scale.reshape(-1, 1)
    return ((numbers.reshape(-1, DIM).to(dtype) - zero_like(scales).to(dtype)) * scales.to(dtype)).reshape(
        numbers.shape
    )


def of_runs(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """As KIVI has keys: a scale and a minimum for every channel over ten tokens."""
    doubled = torch.tensor([1.0, 4.0], device=scale.device)[:, None, None]
    runs = (scale * 1).unsqueeze(-2) * doubled
    return (numbers.float().unflatten(2, (2, 10)) * runs + zero_like(runs) * 2.0**-6).flatten(2, 3).to(dtype)


def of_channels_with_zeros(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return ((numbers.float() - zero_like(scale)) * scale).to(dtype)


def interleaved(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers from 0 to 15, two a byte, about 8."""
    halves = torch.stack([numbers & 0xF, numbers >> 4], -1).flatten(-2)
    return ((halves.float() - 8) * scale).to(dtype)


def in_halves(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Less 8 in bytes already, and with minima of groups of columns."""
    halves = torch.cat([numbers & 15, numbers >> 4], dim=-1).to(torch.int8) - 8
    scales = torch.stack([scale, scale * 2], -2)
    return (halves.float().unflatten(-1, (2, 8)) * scales + zero_like(scales) * 0.0625).flatten(-2).to(dtype)


def in_halves_about_8(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return ((torch.cat([numbers & 0xF, numbers >> 4], -1).float() - 8) * scale).to(dtype)


def signed_interleaved(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    numbers = numbers.view(torch.int8)
    halves = torch.stack([(numbers << 4) >> 4, numbers >> 4], dim=-1).view(*numbers.shape[:-1], -1)
    return (halves * scale).to(dtype)


def signed_halves(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    low, high = (numbers << 4) >> 4, numbers.to(torch.int32) >> 4
    return (torch.cat([low.to(dtype), high.to(dtype)], -1) * scale.to(dtype)).to(dtype)


def zero_like(scale: Tensor) -> Tensor:
    """Two whole numbers, in the shape of the scale that they go with."""
    return (scale < 2.0**-6).float() * 64 - 24


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
    key_zeros: ScaleGranularity = NONE
    value_zeros: ScaleGranularity = NONE
    zero_dtype: torch.dtype | None = None
    minima: bool = False
    packing: str = ""
    key_group: tuple[int, int] | None = None
    value_group: tuple[int, int] | None = None
    key_exponent: int = -6
    value_exponent: int = -6
    # Where a token is that is written over the dequantised cache as it was before quantising.
    exact_at: int | None = None
    # Tokens after the dequantised ones that never were quantised; whether the second of them is hidden.
    residual: int = 0
    residual_hidden: bool = False

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
            if given.exact_at is not None:
                at = torch.full((1,), given.exact_at, device=q.device)
                k[:, :, at], v[:, :, at] = q[:, :KV_HEADS, :1], q[:, KV_HEADS:, :1]
            if given.residual:
                k, v, mask = given.with_residual(q, k, v, mask)
            if given.by_products:
                note(q, k, v, mask, 1 / math.sqrt(DIM), None, None)
                return _by_products(q, k, v, mask)
            if not given.repeated:
                k, v = repeat_kv(k, 2), repeat_kv(v, 2)
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

        return attend

    def with_residual(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All but the last of the tokens in one tensor, as caches gather them, and that in its own."""
        gathered = torch.arange(1, self.residual, device=q.device)[:, None]
        rows = [q[:, ::2, :1], q[:, 1::2, :1]]
        k, v = (torch.cat([x, row * gathered.to(q.dtype), row], 2) for x, row in zip((k, v), rows, strict=True))
        if mask is not None:
            seen = torch.arange(self.residual, device=q.device) != (1 if self.residual_hidden else self.residual)
            mask = torch.cat([mask, seen.expand(BATCH, 1, 1, -1)], -1)
        return k, v, mask

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(self.seed, self.dtype)
        sizes = {"B": BATCH, "H": KV_HEADS, "S": KV_LEN, "D": DIM, "1": 1}
        order = [0, 2, 1, 3] if self.length_first else [0, 1, 2, 3]

        def numbers(length: int) -> Tensor:
            drawn = draw.normal(BATCH, KV_HEADS, length, DIM).permute(order).contiguous()
            if self.packing:
                drawn = draw.normal(BATCH, KV_HEADS, length, DIM // 2).permute(order).contiguous()
                return (drawn.float() * 500).to(torch.int64).remainder(256).to(torch.uint8).view(self.format)
            centre = 128 if self.format is torch.uint8 else 0
            return ((drawn * 40).round().clamp(-127, 127) + centre).to(self.format)

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
        row = DIM // 2 if self.packing else DIM
        layout = (length_first if self.length_first else heads_first)(KV_HEADS, KV_LEN, row)
        # What hides the stored numbers of a token that is given beside them.
        masked = self.mask or self.exact_at is not None
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
            mask=MaskKind.BOOL if masked else MaskKind.NONE,
            mask_dtype=torch.bool if masked else None,
            lse=self.exact_at is not None or self.residual > 0,
            cache=QuantisedCache(
                self.format,
                self.keys,
                self.values,
                self.scale_dtype,
                self.key_zeros,
                self.value_zeros,
                self.zero_dtype,
                Storage(self.minima, self.minima, self.packing),
                self.key_group,
                self.value_group,
            ),
        )


def _by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    batch, _, q_len, dim = q.shape
    grouped = q.view(batch, KV_HEADS, -1, dim)
    scores = (grouped @ k.mT).view(batch, -1, q_len, k.shape[2]) / math.sqrt(DIM)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.float().softmax(-1).to(q.dtype)
    return (weights.reshape(batch, KV_HEADS, -1, k.shape[2]) @ v).view(batch, -1, q_len, dim)


_TOKEN_ZEROS = {"key_zeros": TOKEN, "value_zeros": TOKEN, "zero_dtype": torch.float32}
_ONE_ZERO = {"key_zeros": TENSOR, "value_zeros": TENSOR, "zero_dtype": torch.float32}
_GROUPS = {"keys": GROUP, "values": GROUP, "key_group": (1, 8), "value_group": (1, 8)}
_GROUP_ZEROS = {"key_zeros": GROUP, "value_zeros": GROUP, "zero_dtype": torch.float32}
_FOUR_BITS = {"key_exponent": -2, "value_exponent": -2}
UINT8 = torch.uint8
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
    Dequantised("int8_exact_key", exact_at=8, written=True, dtype=torch.bfloat16, scale_dtype=torch.float32),
    Dequantised("int8_exact_key_unmasked", exact_at=-3, mask=False, q_len=3, value_scale="B.1.1.D", values=NONE),
    Dequantised("int8_exact_key_length_first", exact_at=12, length_first=True, dequantise=promoted),
    Dequantised("int8_exact_key_products", exact_at=12, by_products=True),
    Dequantised("int8_before_residual", residual=4, residual_hidden=True, written=True, dtype=torch.bfloat16),
    Dequantised(
        "uint8_before_residual",
        residual=2,
        mask=False,
        q_len=3,
        format=UINT8,
        dequantise=less_zeros,
        length_first=True,
        **_TOKEN_ZEROS,
    ),
    Dequantised(
        "uint4_before_residual",
        residual=3,
        format=UINT8,
        dequantise=interleaved,
        by_products=True,
        packing="uint4_interleaved",
        **_FOUR_BITS,
        **_ONE_ZERO,
    ),
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
    Dequantised("uint8_zeros", format=UINT8, dequantise=less_zeros, **_TOKEN_ZEROS),
    Dequantised("uint8_minima", format=UINT8, dequantise=plus_minima, minima=True, q_len=2, **_TOKEN_ZEROS),
    Dequantised("uint8_less_a_number", format=UINT8, dequantise=less_a_number, scale_dtype=torch.float16, **_ONE_ZERO),
    Dequantised("uint8_without_zeros", format=UINT8, dtype=torch.bfloat16),
    Dequantised(
        "int8_integer_zeros",
        dequantise=less_integers,
        key_zeros=HEAD,
        value_zeros=HEAD,
        zero_dtype=torch.int32,
        **_OF_HEADS,
    ),
    Dequantised("int8_plus_the_opposite", dequantise=plus_the_opposite, length_first=True, mask=False, **_TOKEN_ZEROS),
    Dequantised("int8_taken_from", dequantise=taken_from, minima=True, **_TOKEN_ZEROS),
    Dequantised("uint8_zeros_and_minima", format=UINT8, dequantise=zeros_and_minima, minima=True, **_TOKEN_ZEROS),
    Dequantised(
        "uint8_value_channels",
        format=UINT8,
        dequantise=less_a_number,
        value_scale="1.H.1.D",
        values=NONE,
        scale_dtype=torch.float16,
        **_ONE_ZERO,
    ),
    Dequantised("uint8_column_groups", format=UINT8, dequantise=of_column_groups, **_GROUPS, **_GROUP_ZEROS),
    Dequantised(
        "uint8_rows_of_groups", format=UINT8, dequantise=in_rows_of_groups, minima=True, **_GROUPS, **_GROUP_ZEROS
    ),
    Dequantised(
        "uint8_rows_of_tokens",
        format=UINT8,
        dequantise=in_rows_of_tokens,
        scale_dtype=torch.float16,
        residual=2,
        **{**_TOKEN_ZEROS, "zero_dtype": torch.float16},
    ),
    Dequantised("int8_column_groups", dequantise=of_column_groups_unzeroed, scale_dtype=torch.float16, **_GROUPS),
    Dequantised(
        "uint8_runs",
        format=UINT8,
        dequantise=of_runs,
        key_scale="B.H.1.D",
        value_scale="1.H.1.D",
        minima=True,
        **{**_GROUPS, "key_group": (10, 1), "value_group": (10, 1)},
        **_GROUP_ZEROS,
    ),
    Dequantised(
        "int8_zeros_of_channels",
        dequantise=of_channels_with_zeros,
        key_scale="1.H.1.D",
        value_scale="B.1.1.D",
        **{**_GROUPS, "keys": NONE, "values": NONE, "key_group": (0, 1), "value_group": (0, 1), "scale_dtype": None},
        **_GROUP_ZEROS,
    ),
    Dequantised(
        "uint4_interleaved",
        format=UINT8,
        dequantise=interleaved,
        packing="uint4_interleaved",
        **_FOUR_BITS,
        **_ONE_ZERO,
    ),
    Dequantised(
        "uint4_halves",
        format=UINT8,
        dequantise=in_halves,
        packing="uint4_halves",
        minima=True,
        length_first=True,
        mask=False,
        **_FOUR_BITS,
        **_GROUPS,
        **_GROUP_ZEROS,
    ),
    Dequantised(
        "int4_interleaved", format=UINT8, dequantise=signed_interleaved, packing="int4_interleaved", **_FOUR_BITS
    ),
    Dequantised(
        "int4_halves", dequantise=signed_halves, packing="int4_halves", scale_dtype=torch.float16, q_len=3, **_FOUR_BITS
    ),
    Dequantised("uint8_products", by_products=True, format=UINT8, dequantise=less_zeros, written=True, **_TOKEN_ZEROS),
    Dequantised("int8_products", by_products=True),
    Dequantised("e4m3_products", by_products=True, format=E4M3, q_len=2, **_OF_HEADS),
)
GOLDEN = tuple(form.golden for form in DEQUANTISED)
