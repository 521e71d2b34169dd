"""Many problems of real sizes on few kernels: what the interpreter is too slow for."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from prefetch_compiler.config import LoadPath, Merge, OperandOrder, PrefetchKind

from ..contract.cases import Case, build, solve
from ..contract.error_bounds import assert_within_bound

pytestmark = pytest.mark.gpu

LLAMA = Case(kv_heads=8, head_dim=128, value_dim=128, dtype=torch.bfloat16, block_kv=64, num_stages=3)
KERNELS = {
    "pointer": LLAMA,
    "pointer, split": replace(LLAMA, num_splits=16, block_kv=128),
    "pointer, keys first": replace(LLAMA, operand_order=OperandOrder.KQ, num_splits=3),
    "pointer, keys first, 64 query rows": replace(LLAMA, operand_order=OperandOrder.KQ, q_len=16),
    "TMA": replace(LLAMA, load_path=LoadPath.TMA, num_warps=2, num_stages=2),
    "TMA, keys first": replace(LLAMA, load_path=LoadPath.TMA, operand_order=OperandOrder.KQ, num_splits=5),
    "TMA, keys first, large tiles": replace(
        LLAMA, load_path=LoadPath.TMA, operand_order=OperandOrder.KQ, block_kv=128, num_warps=8
    ),
    "pointer, rows padded": replace(LLAMA, operand_order=OperandOrder.QK64, num_splits=5),
    "TMA, rows padded": replace(LLAMA, load_path=LoadPath.TMA, operand_order=OperandOrder.QK64),
    "TMA, rows padded, multi-query": replace(
        LLAMA, load_path=LoadPath.TMA, operand_order=OperandOrder.QK64, group=32, kv_heads=1, num_splits=4
    ),
    "TMA, rows padded, eight warps, merged in place": replace(
        LLAMA,
        load_path=LoadPath.TMA,
        operand_order=OperandOrder.QK64,
        block_kv=128,
        num_warps=8,
        num_splits=3,
        merge=Merge.INPLACE,
    ),
    "TMA, merged in place": replace(
        LLAMA, load_path=LoadPath.TMA, num_splits=7, merge=Merge.INPLACE, launch_overlap=True
    ),
    "lines prefetched 8 tiles ahead": replace(LLAMA, prefetch_depth=8, num_splits=2, num_stages=1, num_warps=1),
    "rows prefetched in bulk": replace(
        LLAMA, prefetch_depth=3, prefetch_kind=PrefetchKind.BULK, load_path=LoadPath.TMA
    ),
    "float16": replace(LLAMA, dtype=torch.float16, num_splits=4, launch_overlap=True),
    "float32": replace(LLAMA, dtype=torch.float32, block_kv=16, num_warps=8, num_splits=4),
    "float32, keys first": replace(LLAMA, dtype=torch.float32, block_kv=32, operand_order=OperandOrder.KQ),
    "SmolLM2": replace(LLAMA, group=3, kv_heads=3, head_dim=64, value_dim=64, block_kv=128, num_splits=4),
    "Falcon": replace(LLAMA, group=71, kv_heads=1, head_dim=64, value_dim=64, num_splits=8),
    "Gemma": replace(LLAMA, group=2, kv_heads=4, head_dim=256, value_dim=256, block_kv=32, num_splits=8),
    "a head of 80": replace(LLAMA, group=1, head_dim=80, value_dim=80, num_splits=2),
    "keys wider than values": replace(LLAMA, group=1, head_dim=192, value_dim=128, load_path=LoadPath.TMA),
}
PROBLEMS_PER_KERNEL = 10
MAX_KEYS_IN_BATCH = 20_000  # keeps the float64 oracle below 2 GB
# Masks and layouts that share one kernel: a bool mask equal for all heads and queries, strides of 16 elements.
MASKS = ["prefix", "ragged", "left_padding", "hole"]
LAYOUTS = ["contiguous", "transposed", "sliced", "packed_pair"]


def problem(kernel: Case, number: int) -> Case:
    chooser = random.Random(number)
    keys = round(2 ** chooser.uniform(0, 12.3))
    return replace(
        kernel,
        batch=min(chooser.choice([1, 2, 5, 16, 33]), max(1, MAX_KEYS_IN_BATCH // keys)),
        tiles=0,
        extra_keys=keys,
        spare_keys=chooser.choice([0, 1, 777]),
        mask=chooser.choice(MASKS),
        kv_layout=chooser.choice(LAYOUTS),
        q_layout=chooser.choice(["contiguous", "transposed"]),
        heads_first=chooser.random() < 0.5,
    )


@pytest.mark.parametrize("number", range(PROBLEMS_PER_KERNEL))
@pytest.mark.parametrize("kernel", KERNELS)
def test_problem(kernel: str, number: int) -> None:
    case = problem(KERNELS[kernel], number)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)


@pytest.mark.parametrize("keys", [*range(1, 40), *range(60, 70), *range(120, 140), *range(250, 262)])
@pytest.mark.parametrize("kernel", ["pointer, keys first", "TMA", "TMA, keys first", "TMA, merged in place"])
def test_every_length(kernel: str, keys: int) -> None:
    case = replace(KERNELS[kernel], tiles=0, extra_keys=keys, mask="prefix", batch=2)
    operands = build(case)
    assert_within_bound(solve(case, operands), operands)
