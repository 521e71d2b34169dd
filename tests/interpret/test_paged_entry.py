"""paged_decode_attention(): as a hand-written model calls it, in eager code and compiled, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from prefetch_compiler import paged_decode_attention
from prefetch_compiler.errors import InvalidPagedInputError
from prefetch_compiler.lower import paged_ops
from prefetch_compiler.recognize.bounds import length_bounds

from ..contract.error_bounds import assert_within_bound
from ..contract.paged import PagedProblem, paged_problem

PROBLEM = paged_problem((0, 1, 17, 64), 16, capacity=64, q_len=2, head_dim=24, value_dim=40, pages_first=False)


def arguments(problem: PagedProblem = PROBLEM) -> dict[str, Tensor]:
    return {
        "query": problem.q,
        "key_pages": problem.key_pages,
        "value_pages": problem.value_pages,
        "block_table": problem.table,
        "lengths": problem.lengths,
    }


@pytest.fixture(autouse=True)
def _kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails must not be covered up by what stands in for it."""

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the kernel was not used")

    monkeypatch.setattr(paged_ops, "gathered_attention", refuse)


@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64])
def test_eager(length_dtype: torch.dtype) -> None:
    given = {**arguments(), "lengths": PROBLEM.lengths.to(length_dtype)}
    out = paged_decode_attention(**given)
    assert_within_bound(out, PROBLEM)
    assert out[0].count_nonzero() == 0


def test_another_scale() -> None:
    problem = replace(PROBLEM, scale=0.7)
    assert_within_bound(paged_decode_attention(**arguments(), scale=0.7), problem)


def test_queries_in_any_memory_order() -> None:
    apart = PROBLEM.q.transpose(2, 3).contiguous().transpose(2, 3)
    assert apart.stride(3) != 1
    assert torch.equal(paged_decode_attention(**{**arguments(), "query": apart}), paged_decode_attention(**arguments()))


def test_meta_tensors_give_the_shape() -> None:
    out = paged_decode_attention(**{name: tensor.to("meta") for name, tensor in arguments().items()})
    assert out.device.type == "meta"
    assert (out.shape, out.dtype) == ((4, 4, 2, 40), torch.float32)
    assert out.is_contiguous()


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor", "kvprefetch"])
def test_a_model_that_writes_its_cache_compiles_whole(backend: str) -> None:
    """The step's key and value are written into the pages in place, and seen by the attention that follows."""
    problem = paged_problem((1, 16, 48), 16, capacity=48)

    def step(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
        last = (lengths - 1).long()
        page = table.gather(1, (last // 16)[:, None])[:, 0].long()
        keys[page, :, last % 16] = k
        values[page, :, last % 16] = v
        return paged_decode_attention(q, keys, values, table, lengths) * 1.0

    sequence = torch.arange(3)
    k, v = (cache[sequence, :, problem.lengths.long() - 1] for cache in (problem.k, problem.v))
    keys, values = problem.key_pages.clone(), problem.value_pages.clone()
    for sequence_number, length in enumerate(problem.lengths.tolist()):
        page = problem.table[sequence_number, (length - 1) // 16]
        keys[page, :, (length - 1) % 16] = 1000.0
        values[page, :, (length - 1) % 16] = 1000.0
    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    out = compiled(problem.q, k, v, keys, values, problem.table, problem.lengths)
    assert_within_bound(out, problem)
    assert torch.equal(keys.nan_to_num(), problem.key_pages.nan_to_num())


def test_operator_is_well_formed() -> None:
    bounds = length_bounds(PROBLEM.lengths, 64)
    given = (PROBLEM.q, PROBLEM.key_pages.nan_to_num(), PROBLEM.value_pages.nan_to_num(), PROBLEM.table, bounds, 0.2)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(paged_ops.PAGED_DECODE_ATTENTION, given, test_utils=checks)


def _wider(tensor: Tensor) -> Tensor:
    return torch.cat((tensor, tensor), -1)


WRONG: dict[str, tuple[dict[str, Tensor], str]] = {
    "three dimensions": ({"query": PROBLEM.q[:, :, 0]}, "query .* 4 dimensions"),
    "double": ({
        "query": PROBLEM.q.double(), "key_pages": PROBLEM.key_pages.double(),
        "value_pages": PROBLEM.value_pages.double(),
    }, "query .* dtypes"),
    "another dtype": ({"key_pages": PROBLEM.key_pages.half()}, "key_pages .* query's dtype"),
    "another device": ({"value_pages": PROBLEM.value_pages.to("meta")}, "value_pages .* query's device"),
    "head size": ({"query": PROBLEM.q[..., :20]}, "query .* multiple of 8"),
    "head sizes": ({"query": PROBLEM.q[..., :16]}, "key_pages .* heads of 16"),
    "too many positions": ({"query": PROBLEM.q.repeat(1, 1, 9, 1)}, "query .* 1 to 16 query positions"),
    "page size": ({"key_pages": PROBLEM.key_pages[:, :, :12]}, "key_pages .* power of two"),
    "no pages": ({"key_pages": PROBLEM.key_pages[:0]}, "key_pages .* at least one page"),
    "last stride": ({"key_pages": _wider(PROBLEM.key_pages)[..., ::2]}, "key_pages .* last stride 1"),
    "page counts": ({"value_pages": PROBLEM.value_pages[1:]}, "value_pages .* as key_pages"),
    "query heads": ({"query": PROBLEM.q[:, :3]}, "query .* multiple of the 2 KV heads"),
    "table's rows": ({"block_table": PROBLEM.table[1:]}, r"block_table .* \(4, max_pages\)"),
    "table's dtype": ({"block_table": PROBLEM.table.long()}, "block_table .*must be of dtype torch.int32"),
    "table's stride": ({"block_table": _wider(PROBLEM.table)[:, ::2]}, "block_table .* last stride 1"),
    "lengths' shape": ({"lengths": PROBLEM.lengths[:, None]}, r"lengths .* \(4,\)"),
    "lengths' dtype": ({"lengths": PROBLEM.lengths.float()}, "lengths .*must be of dtype"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_named(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(InvalidPagedInputError, match=message):
        paged_decode_attention(**{**arguments(), **changed})


def test_wrong_inputs_are_named_while_tracing_too() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(paged_decode_attention, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"block_table is .* must be of dtype torch\.int32"):
        compiled(**{**arguments(), "block_table": PROBLEM.table.long()})


@pytest.mark.parametrize("dynamic", [None, True])
def test_other_batches_and_capacities_need_few_graphs(dynamic: bool | None) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(paged_decode_attention, backend=counter, fullgraph=True, dynamic=dynamic)
    for lengths, capacity in (((3, 20), 48), ((1, 48, 6), 64), ((5, 6, 7, 8), 80), ((9, 9, 9, 9, 9), 96)):
        problem = paged_problem(lengths, 16, capacity=capacity)
        assert_within_bound(compiled(**arguments(problem)), problem)
    assert counter.frame_count <= 2


def test_without_a_kernel_sdpa_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(paged_ops, "config_for", lambda spec, device: None)
    assert_within_bound(paged_decode_attention(**arguments()), PROBLEM)


def test_a_kernel_that_fails_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail(*_: Any, **__: Any) -> Tensor:
        calls.append(1)
        raise RuntimeError("no such kernel")

    monkeypatch.undo()
    monkeypatch.setattr(paged_ops, "_failed", set())
    monkeypatch.setattr(paged_ops, "launch_decode", fail)
    for _ in range(2):
        assert_within_bound(paged_decode_attention(**arguments()), PROBLEM)
    assert len(calls) == 1
    assert "no such kernel" in caplog.text
