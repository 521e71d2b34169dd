"""Cases: their arithmetic, their spelling, and what the command line selects."""

from __future__ import annotations

import pytest
import torch

from prefetch_compiler.bench.kernel.cases import CacheLayout, Case, Fill, matches, parse_case
from prefetch_compiler.bench.kernel.grid import QUICK, Sweep, chosen, declared, swept
from prefetch_compiler.database.key import key_of
from prefetch_compiler.errors import InvalidOptionError
from prefetch_compiler.spec import MaskKind

LLAMA = Case(32, 8, 128, 16, 4096, Fill.HALF)


def test_bytes_are_those_of_keys_and_values_that_are_held() -> None:
    assert LLAMA.kv_bytes_per_key == 8 * 2 * 128 * 2
    assert LLAMA.capacity_bytes == 16 * 4096 * LLAMA.kv_bytes_per_key
    assert LLAMA.valid_bytes(0) == LLAMA.capacity_bytes // 2


def test_pages_are_whole() -> None:
    paged = Case(32, 8, 128, 3, 100, layout=CacheLayout.PAGE64)
    assert paged.pages_per_sequence == 2
    assert paged.capacity_bytes == 3 * 128 * paged.kv_bytes_per_key
    assert paged.valid_bytes(0) == 3 * 100 * paged.kv_bytes_per_key
    spec = paged.spec()
    assert (spec.page_size, spec.kv_len, spec.mask) == (64, 128, MaskKind.LENGTHS)
    assert spec.key_layout.strides == torch.empty(6, 64, 8, 128).transpose(1, 2).stride()[:3]
    assert key_of(spec).name.endswith("s128 bshd-tma lengths page64")


def test_ragged_lengths_are_drawn_from_the_seed() -> None:
    ragged = Case(32, 8, 128, 64, 4096, Fill.RAGGED)
    lengths = ragged.lengths(3)
    assert lengths == ragged.lengths(3) != ragged.lengths(4)
    assert len(set(lengths)) > 32
    assert 1 <= min(lengths) < 1000 < 3000 < max(lengths) <= 4096


@pytest.mark.parametrize(
    ("fill", "held"), [(Fill.DENSE, 4096), (Fill.FULL, 4096), (Fill.HALF, 2048), (Fill.EIGHTH, 512)]
)
def test_shares_of_the_capacity(fill: Fill, held: int) -> None:
    case = Case(32, 8, 128, 2, 4096, fill)
    assert case.lengths(0) == (held, held)
    assert case.holds_everything == (held == 4096)
    assert case.needs_lengths == (fill is not Fill.DENSE)


@pytest.mark.parametrize(
    ("heads", "kind"), [((32, 32), "MHA"), ((32, 8), "GQA 4"), ((28, 4), "GQA 7"), ((32, 1), "MQA"), ((1, 1), "MHA")]
)
def test_kinds_of_heads(heads: tuple[int, int], kind: str) -> None:
    assert Case(*heads, 128, 1, 64).heads_kind == kind


@pytest.mark.parametrize("case", declared(), ids=lambda case: case.name)
def test_every_name_is_read_back(case: Case) -> None:
    assert parse_case(case.name) == case
    assert matches(case, case.name)


def test_the_spec_is_what_a_compiled_static_cache_looks_up() -> None:
    spec = LLAMA.spec()
    assert spec is not None
    assert key_of(spec).name == "bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool"
    dense = Case(32, 8, 128, 16, 4096, layout=CacheLayout.BSHD).spec()
    assert dense is not None
    assert dense.mask is MaskKind.NONE
    assert key_of(dense).layout.value == "bshd"


@pytest.mark.parametrize(
    "text", ["32q/5kv b1 s64", "32q/8kv d4 b1 s64", "32q/8kv d512 b1 s64", "0q/1kv b1 s64", "32q/8kv b0 s64"]
)
def test_impossible_sizes_are_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="cases"):
        parse_case(text)


def test_the_grid_has_what_it_promises() -> None:
    cases = declared()
    assert len(set(cases)) == len(cases)
    assert cases[: len(QUICK)] == QUICK
    assert {case.heads_kind for case in cases} == {"MHA", "GQA 4", "GQA 8", "GQA 7", "MQA"}
    assert {case.head_dim for case in cases} == {64, 80, 128, 256}
    assert {case.fill for case in cases} == set(Fill)
    assert {case.layout for case in cases} == set(CacheLayout)
    assert (min(case.batch for case in cases), max(case.batch for case in cases)) == (1, 256)
    assert (min(case.capacity for case in cases), max(case.capacity for case in cases)) == (128, 131072)
    assert max(case.capacity_bytes for case in cases) < 8 << 30


def test_sweeps_change_one_size() -> None:
    batches, lengths = swept(Sweep.BATCH), swept(Sweep.LENGTH)
    assert {case.capacity for case in batches} == {4096}
    assert [case.batch for case in batches][-1] == 256
    assert {case.batch for case in lengths} == {1, 16}
    assert (min(case.capacity for case in lengths), max(case.capacity for case in lengths)) == (128, 131072)


def test_words_select_from_the_grid() -> None:
    assert chosen("", quick=True, sweep=None) == QUICK
    assert chosen("", quick=False, sweep=Sweep.BATCH) == swept(Sweep.BATCH)
    mqa = chosen("mqa ragged", quick=False, sweep=None)
    assert [case.name for case in mqa] == ["32q/1kv d128 b32 s8192 ragged bhsd"]
    assert all(case.head_dim == 80 or case.layout is CacheLayout.PAGE16 for case in chosen("d80, page16", False, None))


def test_a_case_need_not_be_in_the_grid() -> None:
    (case,) = chosen("24q/3kv b5 s777 ragged bshd d96 float16", quick=False, sweep=None)
    assert case == Case(24, 3, 96, 5, 777, Fill.RAGGED, CacheLayout.BSHD, "float16")


@pytest.mark.parametrize("text", ["nonsense", "gqa5", "b16,,b1", "d128 b16 s1e3"])
def test_what_selects_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="cases"):
        chosen(text, quick=False, sweep=None)
