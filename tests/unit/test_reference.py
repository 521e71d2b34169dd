"""The oracle against torch's own SDPA in float64, and against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from prefetch_compiler.reference import exact_attention, same_dtype_attention

NEG_INF = float("-inf")


def inputs(group: int = 3, q_len: int = 2, kv_len: int = 7, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """q (2, 2*group, q_len, 8), k (2, 2, kv_len, 8), v (2, 2, kv_len, 5)"""
    generator = torch.Generator().manual_seed(group * 1000 + q_len * 100 + kv_len)
    shapes = [(2, 2 * group, q_len, 8), (2, 2, kv_len, 8), (2, 2, kv_len, 5)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def torch_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **arguments: object) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(q, k, v, enable_gqa=True, **arguments)  # type: ignore[arg-type]


MASK_SHAPES = [(7,), (2, 7), (1, 1, 1, 7), (2, 1, 1, 7), (2, 1, 2, 7), (1, 6, 1, 7), (2, 6, 2, 7), (2, 1, 2, 1)]


def a_mask(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """Half of it hidden; the first query's row, where rows differ, hides everything."""
    visible = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < 0.5
    if len(shape) > 1:
        visible[..., 0, :] = False
    if kind == "bool":
        return visible
    hidden_value = {"inf": NEG_INF, "min": torch.finfo(torch.float64).min, "bias": -1.5}[kind]
    return torch.full(shape, 0.25, dtype=torch.float64).masked_fill(visible.logical_not(), hidden_value)


@pytest.mark.parametrize("kind", ["bool", "inf", "min", "bias"])
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_masks_mean_what_torch_says(shape: tuple[int, ...], kind: str) -> None:
    q, k, v = inputs()
    mask = a_mask(shape, kind)
    assert torch.allclose(exact_attention(q, k, v, mask), torch_sdpa(q, k, v, attn_mask=mask), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("group", [1, 3, 7])
@pytest.mark.parametrize("scale", [None, 0.3, -1.0, 0.0])
@pytest.mark.parametrize("is_causal", [False, True])
def test_groups_scale_and_causality_mean_what_torch_says(group: int, scale: float | None, is_causal: bool) -> None:
    q, k, v = inputs(group, q_len=4)
    expected = torch_sdpa(q, k, v, scale=scale, is_causal=is_causal)
    assert torch.allclose(exact_attention(q, k, v, scale=scale, is_causal=is_causal), expected, rtol=1e-12, atol=1e-14)


def test_one_head_written_out() -> None:
    q, k, v = inputs(group=3, q_len=1)
    for head in range(6):
        weights = [math.exp(float(q[1, head, 0] @ k[1, head // 3, key]) / math.sqrt(8)) for key in range(7)]
        by_hand = sum(w * v[1, head // 3, key] for key, w in enumerate(weights)) / sum(weights)
        assert torch.allclose(exact_attention(q, k, v)[1, head, 0], by_hand, rtol=1e-12)


def test_causal_is_aligned_to_the_top_left() -> None:
    q, k, v = inputs(q_len=1)
    assert torch.equal(exact_attention(q, k, v, is_causal=True), v[:, :, :1].repeat_interleave(3, 1))


def test_a_row_that_hides_everything() -> None:
    q, k, v = inputs()
    average = v.mean(dim=2, keepdim=True).repeat_interleave(3, 1).expand(2, 6, 2, 5)
    hide_all = torch.zeros(1, 1, 1, 7, dtype=torch.bool)
    assert torch.equal(exact_attention(q, k, v, hide_all), torch.zeros(2, 6, 2, 5, dtype=torch.float64))
    assert torch.equal(exact_attention(q, k, v, hide_all.double() + NEG_INF), torch.zeros_like(average))
    for dtype in (torch.float32, torch.bfloat16):
        finite = hide_all.to(dtype) + torch.finfo(dtype).min
        assert torch.allclose(exact_attention(q, k, v, finite), average, rtol=1e-12)


def test_mask_and_causal_together_are_refused_as_in_torch() -> None:
    q, k, v = inputs()
    mask = torch.ones(1, 1, 1, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="is_causal"):
        exact_attention(q, k, v, mask, is_causal=True)


@pytest.mark.parametrize("query_heads", [3, 5])
def test_heads_that_do_not_divide_are_refused(query_heads: int) -> None:
    q, k, v = inputs()
    with pytest.raises(ValueError, match=f"{query_heads} query heads"):
        exact_attention(q[:, :query_heads], k, v)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_same_dtype_reference_stays_in_its_dtype_and_near_the_oracle(dtype: torch.dtype) -> None:
    q, k, v = inputs(kv_len=64, dtype=dtype)
    mask = torch.rand(2, 6, 2, 64, generator=torch.Generator().manual_seed(1)) < 0.5
    out = same_dtype_attention(q, k, v, mask)
    exact = exact_attention(q, k, v, mask)
    assert out.dtype is dtype
    # Three roundings of at most eps / 2 each, on scores below 8 in magnitude and values below 8.
    assert (out - exact).abs().max() <= 8 * 8 * torch.finfo(dtype).eps
    assert (out - exact).abs().max() > 0
