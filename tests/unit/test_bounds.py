"""mask_bounds against a search in plain Python, on random masks of every broadcastable shape."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetch_compiler.recognize.bounds import length_bounds, mask_bounds

VISIBLE, BIASED, LOWEST, HIDDEN = "visible", "biased", "lowest", "hidden"
FLOATS = [torch.float16, torch.bfloat16, torch.float32]


@dataclass(frozen=True)
class RandomMask:
    """``marks[b][h][q][s]`` says what each entry means, before the dtype gives it a value."""

    shape: tuple[int, int, int, int]
    kv_len: int
    marks: tuple[str, ...]

    def at(self, *index: int) -> str:
        """The mark at a position of the mask broadcast over ``kv_len``."""
        flat = 0
        for position, size in zip(index, self.shape, strict=True):
            flat = flat * size + min(position, size - 1)
        return self.marks[flat]

    def tensor(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype is torch.bool:
            return torch.tensor([mark == VISIBLE for mark in self.marks]).reshape(self.shape)
        values = {VISIBLE: 0.0, BIASED: -3.5, LOWEST: torch.finfo(dtype).min, HIDDEN: float("-inf")}
        return torch.tensor([values[mark] for mark in self.marks], dtype=torch.float64).to(dtype).reshape(self.shape)

    def row(self, sequence: int, head: int, query: int) -> list[str]:
        return [self.at(sequence, head, query, key) for key in range(self.kv_len)]

    def rows(self, sequence: int) -> list[list[str]]:
        heads, queries = range(self.shape[1]), range(self.shape[2])
        return [self.row(sequence, head, query) for head, query in itertools.product(heads, queries)]

    def seen(self, sequence: int) -> list[int]:
        """Keys that some row gives weight: an entry at finfo.min has some only where its row has nothing better."""
        keys = set()
        for row in self.rows(sequence):
            better = VISIBLE in row or BIASED in row
            keys |= {s for s, mark in enumerate(row) if mark in (VISIBLE, BIASED) or (mark == LOWEST and not better)}
        return sorted(keys)


@st.composite
def masks(draw: st.DrawFn, marks: tuple[str, ...]) -> RandomMask:
    sizes = [draw(st.sampled_from((1, size))) for size in (3, 2, 2)]
    kv_len = draw(st.integers(1, 24))
    last = draw(st.sampled_from((1, kv_len)))
    count = sizes[0] * sizes[1] * sizes[2] * last
    kept = draw(st.lists(st.sampled_from(marks), min_size=1, max_size=len(marks), unique=True))
    drawn = draw(st.lists(st.sampled_from(kept), min_size=count, max_size=count))
    return RandomMask((sizes[0], sizes[1], sizes[2], last), kv_len, tuple(drawn))


def check(mask: RandomMask, dtype: torch.dtype) -> None:
    bounds = mask_bounds(mask.tensor(dtype), mask.kv_len)
    assert bounds.dtype is torch.int32
    assert bounds.shape == (mask.shape[0], 4)
    for sequence, (first, end, clean_first, clean_end) in enumerate(bounds.tolist()):
        seen = mask.seen(sequence)
        if seen:
            assert (first, end) == (seen[0], seen[-1] + 1)
        else:
            assert first == end
        assert first <= clean_first <= clean_end <= end
        for row in mask.rows(sequence):
            assert all(mark == VISIBLE for mark in row[clean_first:clean_end])


@settings(max_examples=200, deadline=None)
@given(masks((VISIBLE, HIDDEN)))
def test_bool_masks(mask: RandomMask) -> None:
    check(mask, torch.bool)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@settings(max_examples=100, deadline=None)
@given(mask=masks((VISIBLE, BIASED, LOWEST, HIDDEN)))
def test_additive_masks(dtype: torch.dtype, mask: RandomMask) -> None:
    check(mask, dtype)


def test_what_a_prefix_and_left_padding_leave_is_clean() -> None:
    keys = torch.arange(40)
    visible = torch.stack([keys < 30, (keys >= 7) & (keys < 30), keys < 0, keys >= 0])[:, None, None]
    expected = [[0, 30, 0, 30], [7, 30, 7, 30], [0, 0, 0, 0], [0, 40, 0, 40]]
    assert mask_bounds(visible, 40).tolist() == expected
    for hidden_value in (float("-inf"), torch.finfo(torch.float32).min):
        additive = torch.zeros(visible.shape).masked_fill(~visible, hidden_value)
        kept = [0, 1, 3]  # the third row hides everything: finfo.min then means an average, tested above
        assert mask_bounds(additive[kept], 40).tolist() == [expected[row] for row in kept]


def test_only_the_tail_of_a_causal_mask_is_not_clean() -> None:
    """Four queries at positions 20 to 23: keys 0 to 20 are visible to all of them."""
    visible = torch.arange(40)[None, :] <= torch.arange(20, 24)[:, None]
    assert mask_bounds(visible[None, None], 40).tolist() == [[0, 24, 0, 21]]


def test_a_window_has_its_clean_range_in_the_middle() -> None:
    """Windows of 16 keys ending at 20, 21 and 22 share keys 7 to 20."""
    keys, query = torch.arange(40)[None, :], torch.arange(20, 23)[:, None]
    assert mask_bounds(((keys <= query) & (keys > query - 16))[None, None], 40).tolist() == [[5, 23, 7, 21]]


def test_a_low_but_ordinary_bias_hides_nothing() -> None:
    """Scores may make up for it; only a value far beyond any score hides its key."""
    bias = torch.tensor([-10_000.0, 0.0, -1e9, 5.0])[None, None, None]
    assert mask_bounds(bias, 4)[0, :2].tolist() == [0, 4]


def test_the_key_dimension_may_be_broadcast() -> None:
    mask = torch.tensor([True, False]).reshape(2, 1, 1, 1)
    assert mask_bounds(mask, 9).tolist() == [[0, 9, 0, 9], [0, 0, 0, 0]]


def test_strides_do_not_matter() -> None:
    mask = torch.rand(3, 1, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.7
    strided = mask.repeat_interleave(2, -1)[..., ::2].transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(mask_bounds(strided, 40), mask_bounds(mask, 40))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_have_the_bounds_of_the_masks_that_say_the_same(dtype: torch.dtype) -> None:
    lengths = torch.tensor([0, 1, 17, 40], dtype=dtype)
    mask = (torch.arange(40) < lengths[:, None])[:, None, None]
    bounds = length_bounds(lengths, 40)
    assert bounds.dtype is torch.int32
    assert torch.equal(bounds, mask_bounds(mask, 40))


def test_lengths_that_no_cache_can_hold_are_cut() -> None:
    assert length_bounds(torch.tensor([-3, 41, 2**40]), 40).tolist() == [[0, 0, 0, 0], [0, 40, 0, 40], [0, 40, 0, 40]]
