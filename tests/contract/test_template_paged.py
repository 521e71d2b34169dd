"""Paged caches in the templates: page sizes and tiles, lengths at every edge, garbage beyond them, causal tails, soft
caps and sinks, and the same over quantised caches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, Partition
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.device import profile
from prefetch_compiler.lower.call import PAGED, AttentionCall, spec_of
from prefetch_compiler.lower.launch import launch_decode
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.spec import AttentionSpec, Storage
from prefetch_compiler.tuning.inputs import mask_of, operands

from .cases import DEVICE
from .error_bounds import assert_within_bound
from .paged import PagedProblem, paged_problem
from .poison import NAN, uninitialised_is_nan
from .quantised_cases import E4M3, E5M2, INT8, UINT8

PLAIN = KernelConfig(block_kv=16, num_splits=1, num_warps=4, num_stages=2)
QUANTISED = replace(PLAIN, num_warps=2, operand_order=OperandOrder.KQ)
PAGE_SIZES = [1, 16, 64, 256]


def solve(problem: PagedProblem, config: KernelConfig) -> Tensor:
    assert why_inadmissible(paged_spec(problem), config, profile(DEVICE)) is None
    with uninitialised_is_nan():
        return launch_decode(
            problem.q, problem.key_pages, problem.value_pages, None, None, is_causal=problem.causal,
            scale=problem.scale, heads_first=True, config=config, k_scale=problem.key_scale,
            v_scale=problem.value_scale, lengths=problem.lengths, table=problem.table,
            softcap=problem.softcap, sink=problem.sink, k_zero=problem.key_zero, v_zero=problem.value_zero,
            storage=Storage(packing=problem.packing),
        )  # fmt: skip


def paged_spec(problem: PagedProblem) -> AttentionSpec:
    """The spec that the operator would write for these operands."""
    p = problem
    return spec_of(
        AttentionCall(
            p.q, p.key_pages, p.value_pages, p.key_scale, p.value_scale, None, None, p.lengths, p.table, p.sink,
            p.causal, p.scale, p.softcap, PAGED, p.key_zero, p.value_zero, p.packing,
        )
    )  # fmt: skip


def edges(page_size: int, block_kv: int, capacity: int) -> list[int]:
    """Nothing, one key, the first edges of pages and tiles with their neighbours, and all that there is room for."""
    at = {unit * times for unit in (page_size, block_kv) for times in (1, 2)}
    around = {edge + extra for edge in at for extra in (-1, 0, 1)} | {0, 1, capacity - 1, capacity}
    return sorted(length for length in around if 0 <= length <= capacity)


@pytest.mark.parametrize(("page_size", "block_kv"), [(1, 16), (16, 16), (16, 64), (64, 16), (256, 64)])
def test_lengths_at_edges_of_pages_and_tiles(page_size: int, block_kv: int) -> None:
    capacity = max(2 * page_size, 3 * 64)
    problem = paged_problem(edges(page_size, block_kv, capacity), page_size, capacity=capacity, kv_heads=1)
    assert_within_bound(solve(problem, replace(PLAIN, block_kv=block_kv)), problem)


def _name(given: dict[str, Any]) -> str:
    return "-".join(name if name in ("softcap", "sink") else str(value) for name, value in given.items())


SPLITS: list[dict[str, Any]] = [
    {"page_size": 1, "partition": Partition.EVEN, "merge": Merge.SEPARATE, "softcap": 2.0},
    {"page_size": 16, "partition": Partition.STRIDED, "merge": Merge.INPLACE, "sink": True},
    {"page_size": 64, "partition": Partition.CHUNKED, "merge": Merge.SEPARATE},
    {"page_size": 64, "partition": Partition.BALANCED, "merge": Merge.INPLACE},
    {"page_size": 256, "partition": Partition.BALANCED, "merge": Merge.SEPARATE, "softcap": 2.0, "sink": True},
    {"page_size": 16, "partition": Partition.STREAMED, "merge": Merge.SEPARATE, "softcap": 2.0, "sink": True},
    {"page_size": 1, "partition": Partition.STREAMED, "merge": Merge.INPLACE, "sink": True},
]


@pytest.mark.parametrize("given", SPLITS, ids=_name)
def test_splits(given: dict[str, Any]) -> None:
    config = replace(PLAIN, num_splits=3, merge=given["merge"], partition=given["partition"])
    problem = paged_problem(
        (0, 100, 37, 256), given["page_size"], capacity=256, kv_heads=1, softcap=given.get("softcap"),
        sink="sink" in given,
    )  # fmt: skip
    assert_within_bound(solve(problem, config), problem)


@pytest.mark.parametrize("partition", Partition)
@pytest.mark.parametrize("kv_dtype", [None, E4M3], ids=str)
def test_causal_among_the_last_keys(kv_dtype: torch.dtype | None, partition: Partition) -> None:
    """Four queries; of a sequence that holds fewer keys than that, the first of them see nothing."""
    if kv_dtype is not None and partition is Partition.STREAMED:
        pytest.skip("programs over a quantised cache have one sequence each")
    problem = paged_problem(
        (0, 2, 17, 64), 16, capacity=64, kv_heads=1, q_len=4, causal=True, kv_dtype=kv_dtype, dtype=torch.float16
    )
    config = replace(PLAIN if kv_dtype is None else QUANTISED, num_splits=2, partition=partition)
    out = solve(problem, config)
    assert_within_bound(out, problem)
    assert out[1, :, :2].count_nonzero() == 0


@pytest.mark.parametrize("pages_first", [True, False])
@pytest.mark.parametrize(
    ("group", "q_len", "order"),
    [(1, 1, OperandOrder.QK), (3, 2, OperandOrder.KQ), (8, 3, OperandOrder.QK), (8, 4, OperandOrder.KQ)],
)
def test_query_heads_and_positions(group: int, q_len: int, order: OperandOrder, pages_first: bool) -> None:
    problem = paged_problem(
        (5, 40), 16, capacity=64, group=group, q_len=q_len, head_dim=40, value_dim=24, pages_first=pages_first
    )
    assert_within_bound(solve(problem, replace(PLAIN, block_kv=32, num_splits=2, operand_order=order)), problem)


@pytest.mark.parametrize(
    ("page_size", "order", "partition"),
    [
        (16, OperandOrder.QK, Partition.EVEN),
        (16, OperandOrder.KQ, Partition.BALANCED),
        (64, OperandOrder.QK, Partition.STRIDED),
        (64, OperandOrder.KQ, Partition.CHUNKED),
    ],
)
def test_tma(page_size: int, order: OperandOrder, partition: Partition) -> None:
    config = replace(PLAIN, num_splits=2, load_path=LoadPath.TMA, operand_order=order, partition=partition)
    problem = paged_problem(edges(page_size, 16, 128), page_size, capacity=128, kv_heads=1, dtype=torch.float16)
    assert_within_bound(solve(problem, config), problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    problem = paged_problem((3, 64, 65, 128), 64, capacity=128, dtype=dtype, head_dim=64, value_dim=64)
    assert_within_bound(solve(problem, replace(PLAIN, num_splits=2)), problem)


def _row(
    page_size: int, kv_dtype: torch.dtype, scales: str, partition: Partition, block_kv: int, **extra: Any
) -> dict[str, Any]:
    given = {"page_size": page_size, "kv_dtype": kv_dtype, "scales": scales, "partition": partition}
    return {**given, "block_kv": block_kv, **extra}


QUANTISED_PAGES: list[dict[str, Any]] = [
    _row(1, INT8, "token", Partition.BALANCED, 16),
    _row(16, E4M3, "head", Partition.EVEN, 64, sink=True),
    _row(16, E5M2, "token", Partition.STRIDED, 64, softcap=2.0),
    _row(64, E4M3, "token", Partition.CHUNKED, 32, sink=True),
    _row(256, INT8, "tensor", Partition.BALANCED, 32, softcap=2.0, sink=True),
    _row(64, E5M2, "none", Partition.EVEN, 16),
    _row(16, UINT8, "token", Partition.BALANCED, 32),
    _row(1, UINT8, "head", Partition.EVEN, 16),
    _row(64, UINT8, "token", Partition.STRIDED, 32, packing="uint4_interleaved"),
]


@pytest.mark.parametrize("load_path", [LoadPath.POINTER, LoadPath.TMA])
@pytest.mark.parametrize("given", QUANTISED_PAGES, ids=_name)
def test_quantised_pages(given: dict[str, Any], load_path: LoadPath) -> None:
    """Heads inside of a page's keys where loads are by TMA, which takes rows of 16 bytes."""
    row = 32 if given.get("packing") else 16
    problem = paged_problem(
        (0, 100, 37, 256), given["page_size"], capacity=256, group=1, q_len=2, head_dim=2 * row, value_dim=row,
        dtype=torch.bfloat16, kv_dtype=given["kv_dtype"], scales=given["scales"],
        pages_first=load_path is LoadPath.POINTER, softcap=given.get("softcap"), sink="sink" in given,
        packing=given.get("packing", ""),
    )  # fmt: skip
    config = replace(
        QUANTISED, num_splits=2, load_path=load_path, partition=given["partition"], block_kv=given["block_kv"]
    )
    if load_path is LoadPath.TMA and given["page_size"] < given["block_kv"]:
        pytest.skip("pages smaller than tiles are not for TMA")
    assert_within_bound(solve(problem, config), problem)


@pytest.mark.parametrize("partition", [Partition.EVEN, Partition.BALANCED, Partition.STREAMED])
@pytest.mark.parametrize("extra", [{}, {"softcap": 2.0, "sink": True}], ids=["", "softcap and sink"])
def test_lengths_of_a_cache_in_one_piece(extra: dict[str, Any], partition: Partition) -> None:
    """What the pages would hold."""
    problem = paged_problem((0, 2, 17, 64), 16, capacity=64, kv_heads=1, q_len=3, causal=True, **extra)
    config = replace(PLAIN, num_splits=2, partition=partition)
    visible = (torch.arange(64, device=DEVICE) < problem.lengths[:, None])[:, None, :, None]
    k, v = (cache.masked_fill(~visible, NAN) for cache in (problem.k, problem.v))
    with uninitialised_is_nan():
        out = launch_decode(
            problem.q, k, v, None, None, is_causal=True, scale=problem.scale, heads_first=True, config=config,
            lengths=problem.lengths, softcap=problem.softcap, sink=problem.sink,
        )  # fmt: skip
    assert_within_bound(out, problem)


@pytest.mark.parametrize(
    ("page_size", "mask", "kv_dtype"),
    [
        (1, "bool", ""),
        (16, "bool_rows", ""),
        (128, "additive-float32", ""),
        (16, "none", ""),
        (128, "bool", "/int8"),
        (1, "bool_rows", "/int8"),
        (16, "additive-float32", "/int8"),
    ],
)
def test_a_mask_over_pages(kv_dtype: str, mask: str, page_size: int) -> None:
    """Left padding that ends inside a page, holes, nothing at all; NaN and table entries that lead nowhere outside."""
    dtype, features = ("float16/int8", "key_token_scales ") if kv_dtype else ("float32", "")
    key = parse_key(f"{dtype} 4q/2kv d16 q2 b4 s256 bshd-tma {mask} {features}page{page_size}")
    position = torch.arange(256, device=DEVICE)
    visible = torch.stack([position < 200, (position >= 37) & (position < 181), position % 3 == 1, position < 0])
    spec = key.spec()
    given = operands(spec, mask_of(spec, visible), torch.Generator(DEVICE).manual_seed(page_size))
    for config in (
        replace(QUANTISED if kv_dtype else PLAIN, block_kv=32, num_splits=3),
        replace(QUANTISED if kv_dtype else PLAIN, block_kv=64, num_splits=2, partition=Partition.BALANCED),
    ):
        assert why_inadmissible(spec, config, profile(DEVICE)) is None
        rows = None if given.mask is None else given.mask.expand(4, 4, 2, 256)
        with uninitialised_is_nan():
            out = launch_decode(
                given.q, given.stale_k, given.stale_v, rows, given.bounds, is_causal=False, scale=spec.scale,
                heads_first=True, config=config, k_scale=given.k_scale, v_scale=given.v_scale, table=given.table,
            )  # fmt: skip
        assert_within_bound(out, given)


def test_tma_is_not_for_tiles_that_begin_where_a_mask_does() -> None:
    spec = parse_key("float16 4q/2kv d64 q1 b4 s256 bshd-tma bool page64").spec()
    assert "begin with a page" in str(why_inadmissible(spec, replace(PLAIN, load_path=LoadPath.TMA), profile(DEVICE)))
    assert why_inadmissible(spec, PLAIN, profile(DEVICE)) is None


def test_sequences_may_share_pages() -> None:
    """As a common prompt does."""
    problem = paged_problem((64, 64), 16, capacity=64)
    table = problem.table.clone()
    table[1, :2] = table[0, :2]
    k, v = problem.k.clone(), problem.v.clone()
    k[1, :, :32], v[1, :, :32] = k[0, :, :32], v[0, :, :32]
    shared = replace(problem, table=table, k=k, v=v)
    assert_within_bound(solve(shared, PLAIN), shared)


def test_a_table_may_be_part_of_a_wider_one() -> None:
    problem = paged_problem((20, 33), 16, capacity=48)
    wide = torch.full((2, 9), -7, dtype=torch.int32, device=DEVICE)
    wide[:, 4:7] = problem.table
    assert_within_bound(solve(replace(problem, table=wide[:, 4:7]), PLAIN), problem)


@pytest.mark.parametrize("partition", [Partition.EVEN, Partition.BALANCED, Partition.STREAMED])
@pytest.mark.parametrize(
    ("lengths", "dtype"), [((-5, 70), torch.int32), ((-(2**31), 2**31 - 1), torch.int32), ((-1, 2**40), torch.int64)]
)
def test_lengths_outside_the_cache_count_as_its_ends(
    lengths: tuple[int, int], dtype: torch.dtype, partition: Partition
) -> None:
    problem, config = paged_problem((0, 48), 16, capacity=48), replace(PLAIN, num_splits=2, partition=partition)
    given = torch.tensor(lengths, dtype=dtype, device=DEVICE)
    assert torch.equal(solve(replace(problem, lengths=given), config), solve(problem, config))


def test_pages_smaller_than_tiles_are_not_for_tma() -> None:
    problem = paged_problem((5,), 16, capacity=32, dtype=torch.float16)
    config = replace(PLAIN, block_kv=32, load_path=LoadPath.TMA)
    reason = why_inadmissible(paged_spec(problem), config, profile(DEVICE))
    assert reason is not None
    assert "pages of whole tiles" in reason
    assert why_inadmissible(paged_spec(problem), replace(config, block_kv=16), profile(DEVICE)) is None


def test_no_table_is_read_before_it_may_be() -> None:
    reason = why_inadmissible(
        paged_spec(paged_problem((5,), 16, capacity=32)), replace(PLAIN, prologue_prefetch=True), profile(DEVICE)
    )
    assert reason is not None
    assert "table" in reason
