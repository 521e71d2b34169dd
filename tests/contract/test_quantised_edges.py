"""Numbers at the edges of quantised formats: every byte, NaN, zeros of either sign, denormals, and scales to match."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from prefetch_compiler.templates.unpack import unpack_byte
from torch import Tensor

from prefetch_compiler import DecodeOptions, quantise, quantised_decode_attention
from prefetch_compiler.quantisation import dequantise
from prefetch_compiler.reference import exact_attention
from prefetch_compiler.spec import CENTRES, QUANTISED_FORMATS

from .cases import DEVICE
from .error_bounds import assert_within_bound
from .quantised_cases import E4M3, E5M2, INT8, NAN_BYTE, QuantisedOperands

ASSEMBLY = [False, pytest.param(True, marks=pytest.mark.gpu)]
FORMATS = list(QUANTISED_FORMATS)
STRICT = DecodeOptions(strict=True)


@triton.jit
def unpack_units(unit_ptr, out_ptr, COUNT: tl.constexpr, FORMAT: tl.constexpr, ASSEMBLY: tl.constexpr):
    place = tl.arange(0, COUNT)
    units = tl.load(unit_ptr + place)
    tl.store(out_ptr + place * 2, unpack_byte(units, FORMAT, False, ASSEMBLY))
    tl.store(out_ptr + place * 2 + 1, unpack_byte(units, FORMAT, True, ASSEMBLY))


@pytest.mark.parametrize("assembly", ASSEMBLY)
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_every_byte_is_unpacked_exactly_in_either_place(dtype: torch.dtype, assembly: bool) -> None:
    if assembly and dtype is E4M3 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the instruction needs sm_89")
    every = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    stored = torch.stack((every, every.flip(0), every.roll(7), every), 1).flatten()
    out = torch.empty(1024, dtype=torch.float16, device=DEVICE)
    unpack_units[(1,)](stored.view(torch.int16), out, 512, QUANTISED_FORMATS[dtype], assembly)
    expected = (stored.view(dtype).float() - CENTRES[QUANTISED_FORMATS[dtype]]).half()
    numbers = ~expected.isnan()
    assert torch.equal(out.isnan(), ~numbers)
    assert torch.equal(out[numbers].view(torch.int16), expected[numbers].view(torch.int16))


def attention_of(
    k: Tensor, v: Tensor, k_scale: Tensor | None = None, v_scale: Tensor | None = None, mask: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, QuantisedOperands]:  # fmt: skip
    """The output over a cache of one sequence, and what it is to be held against."""
    generator = torch.Generator().manual_seed(11)
    q = torch.randn(k.shape[0], 2 * k.shape[1], 1, k.shape[3], generator=generator).to(DEVICE, dtype)
    scale = k.shape[3] ** -0.5
    out = quantised_decode_attention(q, k, v, k_scale, v_scale, mask, options=STRICT)
    exact_k, exact_v = dequantise(k, k_scale, torch.float64), dequantise(v, v_scale, torch.float64)
    return out, QuantisedOperands(q, exact_k, exact_v, k, v, k_scale, v_scale, mask, False, scale)


def random_numbers(dtype: torch.dtype, keys: int = 70, dim: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    numbers, _ = quantise(torch.randn(1, 2, keys, dim, generator=generator), dtype, "tensor")
    return numbers.to(DEVICE)


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("where", ["key", "value"])
def test_nan_that_is_seen_is_passed_on_and_nan_beyond_the_mask_is_not(dtype: torch.dtype, where: str) -> None:
    k, v = random_numbers(dtype), random_numbers(dtype)
    (k if where == "key" else v).view(torch.uint8)[0, 0, 40, 5] = NAN_BYTE
    scale = torch.tensor(0.01, device=DEVICE)
    position = torch.arange(70, device=DEVICE)
    seen, _ = attention_of(k, v, scale, scale)
    assert seen[:, :2].isnan().any()
    assert seen[:, 2:].isfinite().all()
    for visible in (position < 40, position > 40):
        hidden, _ = attention_of(k, v, scale, scale, visible[None, None, None])
        assert hidden.isfinite().all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_the_smallest_numbers_count(dtype: torch.dtype) -> None:
    """Values that are all denormal (or few, of integers), of either sign, and zeros of either sign."""
    signs = torch.arange(2 * 70 * 32, device=DEVICE).reshape(1, 2, 70, 32)
    bytes_ = (signs % 3).to(torch.uint8)
    negative = 0x81 if dtype.is_floating_point else 0xFF
    bytes_ = torch.where(signs % 5 == 0, negative, bytes_).to(torch.uint8)
    if dtype.is_floating_point:
        bytes_ = torch.where(signs % 7 == 0, 0x80, bytes_).to(torch.uint8)
    v = bytes_.view(dtype)
    out, operands = attention_of(random_numbers(dtype), v, torch.tensor(0.01, device=DEVICE))
    assert exact_attention(operands.q, operands.k, operands.v).abs().amax() > 0
    assert_within_bound(out, operands)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("hidden_value", [float("-inf"), torch.finfo(torch.float32).min])
def test_rows_that_hide_every_key_keep_the_values_of_tokens_apart(dtype: torch.dtype, hidden_value: float) -> None:
    """-inf throughout gives 0; a finite value swallows the scores and leaves the plain average of values as large as
    their own scales make them."""
    k, v = random_numbers(dtype), random_numbers(dtype)
    token_scales = torch.exp2(torch.arange(70, device=DEVICE) % 13 - 14.0).expand(1, 2, 70).contiguous()
    mask = torch.full((1, 1, 1, 70), hidden_value, device=DEVICE)
    out, operands = attention_of(k, v, token_scales, token_scales, mask, torch.float16)
    if hidden_value == float("-inf"):
        assert (out == 0).all()
    assert_within_bound(out, operands)


def test_scales_may_be_zero_or_as_small_and_large_as_float32_allows() -> None:
    k, v = random_numbers(E4M3), random_numbers(E4M3)
    exponents = torch.arange(70, device=DEVICE) * 3 % 40 - 60.0
    scales = torch.exp2(exponents).masked_fill(exponents == -33.0, 0.0).expand(1, 2, 70).contiguous()
    out, operands = attention_of(k, v, torch.tensor(0.01, device=DEVICE), scales, dtype=torch.bfloat16)
    assert_within_bound(out, operands)
    nothing, _ = attention_of(k, v, torch.tensor(0.01, device=DEVICE), torch.zeros_like(scales))
    assert (nothing == 0).all()


def test_a_query_as_large_or_as_small_as_bfloat16_allows() -> None:
    """Queries go to float16, whose range is far smaller, by powers of two that are taken back."""
    k, v = random_numbers(E4M3), random_numbers(E4M3)
    generator = torch.Generator().manual_seed(11)
    for exponent in (-90, 90):
        q = (torch.randn(1, 4, 1, 32, generator=generator) * 2.0**exponent).to(DEVICE, torch.bfloat16)
        scale = 2.0**-exponent / 100
        out = quantised_decode_attention(q, k, v, scale=scale, options=STRICT)
        exact_k, exact_v = k.double(), v.double()
        assert_within_bound(out, QuantisedOperands(q, exact_k, exact_v, k, v, None, None, None, False, scale))


@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("is_causal", [False, True])
def test_lengths_in_place_of_a_mask(is_causal: bool, length_dtype: torch.dtype) -> None:
    """Of three queries; with ``is_causal`` the last keys are theirs."""
    k, v = random_numbers(INT8), random_numbers(INT8)
    scale = torch.tensor(0.01, device=DEVICE)
    ends = 33 - torch.arange(2, -1, -1, device=DEVICE)[:, None] * is_causal
    mask = (torch.arange(70, device=DEVICE) < ends)[None, None]
    q = torch.randn(1, 4, 3, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.bfloat16)
    lengths = torch.tensor([33], dtype=length_dtype, device=DEVICE)
    out = quantised_decode_attention(q, k, v, scale, scale, lengths=lengths, is_causal=is_causal, options=STRICT)
    exact_k, exact_v = dequantise(k, scale, torch.float64), dequantise(v, scale, torch.float64)
    assert_within_bound(out, QuantisedOperands(q, exact_k, exact_v, k, v, scale, scale, mask, False, 32**-0.5))
