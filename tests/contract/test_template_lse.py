"""The log-sum-exp that kernels return beside the output: right on every road that a result takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, Partition
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower.launch import empty_lse

from .cases import Case, build, solve
from .compile_worker import compile_elsewhere
from .error_bounds import assert_lse_within_bound
from .poison import NAN
from .quantised_cases import INT8, QuantisedCase, build_quantised, solve_quantised
from .representative_specs import site

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

BY_KEYS = OperandOrder.KQ
CASES = [
    Case(batch=2),
    Case(q_len=3, mask="causal", kv_heads=1),
    Case(mask="ragged", q_len=2, dtype=torch.bfloat16, kv_heads=1),
    Case(mask="ragged", num_splits=3, merge=Merge.INPLACE, group=3, kv_heads=1),
    Case(mask="ragged", num_splits=3, partition=Partition.STRIDED, operand_order=BY_KEYS, kv_heads=1, group=16),
    Case(mask="left_padding", num_splits=3, partition=Partition.BALANCED, q_len=2, kv_heads=1, group=1),
    Case(mask="left_padding", num_splits=4, partition=Partition.STREAMED, q_len=2, kv_heads=1, group=1),
    Case(num_splits=20, tiles=19, batch=1, kv_heads=1, scale=-1.0),
    Case(sink=True, softcap=2.0, num_splits=2, merge=Merge.INPLACE, dtype=torch.float16, kv_heads=1),
    *(
        Case(sink=True, mask="ragged", num_splits=2, merge=merge, partition=partition, kv_heads=1)
        for merge, partition in (
            (Merge.SEPARATE, Partition.EVEN),
            (Merge.INPLACE, Partition.BALANCED),
            (Merge.SEPARATE, Partition.STREAMED),
        )
    ),
    Case(group=71, q_len=2, kv_heads=1, batch=1, load_path=LoadPath.TMA, num_splits=2, merge=Merge.INPLACE),
    Case(mask="alibi", q_len=3, kv_heads=1),
    Case(mask="additive_min", q_len=3, num_splits=2, batch=2, kv_heads=1),
    Case(mask="additive_inf", q_len=3, num_splits=2, merge=Merge.INPLACE, batch=2, kv_heads=1),
]
QUANTISED_CASES = [
    QuantisedCase(mask="ragged", q_len=2, kv_heads=1),
    QuantisedCase(kv_dtype=INT8, mask="left_padding", num_splits=2, kv_heads=1, sink=True, softcap=2.0),
]


def _unwritten(q: Tensor) -> Tensor:
    return empty_lse(q).fill_(NAN)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_log_sum_exp_is_right_and_leaves_the_output_as_it_is(case: Case) -> None:
    operands = build(case)
    lse = _unwritten(operands.q)
    out = solve(case, operands, lse)
    assert torch.equal(out, solve(case, operands))
    assert_lse_within_bound(lse, operands)


@pytest.mark.parametrize("case", QUANTISED_CASES, ids=lambda case: case.name)
def test_the_log_sum_exp_over_a_quantised_cache(case: QuantisedCase) -> None:
    operands = build_quantised(case)
    lse = _unwritten(operands.q)
    out = solve_quantised(case, operands, lse)
    assert torch.equal(out, solve_quantised(case, operands))
    assert_lse_within_bound(lse, operands)


def test_a_merge_in_place_with_a_log_sum_exp_compiles() -> None:
    """Others, over caches of all kinds, do in ``test_cache_kernels_compile``."""
    config = KernelConfig(32, 3, 4, 2, merge=Merge.INPLACE)
    (result,) = compile_elsewhere([(site(8, 2, 64, lse=True), config, REFERENCE_DEVICES[90])])
    assert not isinstance(result, str), result
    assert [kernel.name for kernel in result] == ["split_kv_decode"]
