"""paged_decode_attention(): as a hand-written model calls it, in eager code and compiled, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from prefetch_compiler import DecodeOptions, paged_decode_attention
from prefetch_compiler.error_bound import yardstick
from prefetch_compiler.errors import InvalidAttentionInputError, KernelLaunchError, SiteNotLoweredError
from prefetch_compiler.lower import call_op

from ..contract.error_bounds import assert_within_bound
from ..contract.paged import PagedProblem, paged_problem

STRICT = DecodeOptions(strict=True)
PROBLEM = paged_problem((0, 1, 17, 64), 16, capacity=64, q_len=2, head_dim=24, value_dim=40, pages_first=False)


QUANTISED = paged_problem(
    (0, 1, 17, 64), 16, capacity=64, q_len=2, head_dim=24, value_dim=40, causal=True, kv_dtype=torch.int8,
    dtype=torch.bfloat16,
)  # fmt: skip


def arguments(problem: PagedProblem = PROBLEM) -> dict[str, Any]:
    return {
        "query": problem.q,
        "key_pages": problem.key_pages,
        "value_pages": problem.value_pages,
        "block_table": problem.table,
        "lengths": problem.lengths,
        "key_scale": problem.key_scale,
        "value_scale": problem.value_scale,
    }


@pytest.fixture(autouse=True)
def _kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that fails must not be covered up by what stands in for it."""

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the kernel was not used")

    monkeypatch.setattr(call_op, "plain_attention", refuse)


@pytest.mark.parametrize("length_dtype", [torch.int32, torch.int64])
def test_eager(length_dtype: torch.dtype) -> None:
    given = {**arguments(), "lengths": PROBLEM.lengths.to(length_dtype)}
    out = paged_decode_attention(**given)
    assert_within_bound(out, PROBLEM)
    assert out[0].count_nonzero() == 0


def test_a_quantised_cache_and_a_causal_tail() -> None:
    out = paged_decode_attention(**arguments(QUANTISED), is_causal=True, options=STRICT)
    assert_within_bound(out, QUANTISED)
    # Of a sequence with one key, the first of two queries sees none.
    assert out[1, :, 0].count_nonzero() == 0


@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=str)
def test_soft_caps_and_sinks(kv_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a kernel, in eager code and compiled, and by what stands in for it. Sinks may be apart in memory."""
    problem = paged_problem(
        (0, 1, 17, 64), 16, capacity=64, q_len=2, head_dim=24, value_dim=40, causal=True, kv_dtype=kv_dtype,
        dtype=torch.bfloat16, softcap=2.0, sink=True,
    )  # fmt: skip
    assert problem.sink is not None
    apart = torch.stack((problem.sink, problem.sink + 7), 1)[:, 0]
    given = {**arguments(problem), "is_causal": True, "softcap": 2.0, "sink": apart}
    out = paged_decode_attention(**given, options=STRICT)
    assert_within_bound(out, problem)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(paged_decode_attention, backend="aot_eager", fullgraph=True)(**given), out)
    monkeypatch.undo()
    given["key_pages"] = problem.key_pages.repeat_interleave(2, 3)[..., ::2]
    assert_within_bound(paged_decode_attention(**given), problem)


def test_lengths_apart_in_memory() -> None:
    apart = torch.stack((PROBLEM.lengths, PROBLEM.lengths + 7), 1)[:, 0]
    assert torch.equal(
        paged_decode_attention(**{**arguments(), "lengths": apart}), paged_decode_attention(**arguments())
    )


def test_another_scale() -> None:
    problem = replace(PROBLEM, scale=0.7)
    assert_within_bound(paged_decode_attention(**arguments(), scale=0.7), problem)


def test_meta_tensors_give_the_shape() -> None:
    out = paged_decode_attention(
        **{name: tensor.to("meta") for name, tensor in arguments().items() if tensor is not None}
    )
    assert out.device.type == "meta"
    assert (out.shape, out.dtype) == ((4, 4, 2, 40), torch.float32)
    assert out.is_contiguous()


@pytest.mark.parametrize("backend", ["inductor", "kvprefetch"])
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
    key_pages, value_pages = PROBLEM.key_pages.nan_to_num(), PROBLEM.value_pages.nan_to_num()
    tensors = (PROBLEM.q, key_pages, value_pages, None, None, None, None, PROBLEM.lengths, PROBLEM.table)
    sink = torch.randn(PROBLEM.q.shape[1], device=PROBLEM.q.device)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    given = (
        *tensors, sink, True, 0.2, 30.0, "paged_decode_attention", None, None, "", *(False,) * 3, [],
    )  # fmt: skip
    torch.library.opcheck(call_op.CALLED_ATTENTION, given, test_utils=checks)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "three dimensions": ({"query": PROBLEM.q[:, :, 0]}, "query .* four dimensions"),
    "another dtype": ({"key_pages": PROBLEM.key_pages.half()}, "key_pages .* query's dtype"),
    "another device": ({"value_pages": PROBLEM.value_pages.to("meta")}, "value_pages .* query's device"),
    "head sizes": ({"query": PROBLEM.q[..., :16]}, "key_pages .* head_dim, 16"),
    "no pages": ({"key_pages": PROBLEM.key_pages[:0]}, "key_pages .* at least one page"),
    "page counts": ({"value_pages": PROBLEM.value_pages[1:]}, "value_pages .* of key_pages"),
    "query heads": ({"query": PROBLEM.q[:, :3]}, "key_pages .* divides the query's 3"),
    "a scale of what is not quantised": ({"key_scale": torch.ones(())}, "key_scale .* None for a cache of"),
    "table's rows": ({"block_table": PROBLEM.table[1:]}, r"block_table .* \(4, max_pages\)"),
    "table's dtype": ({"block_table": PROBLEM.table.long()}, "block_table .*must be of dtype torch.int32"),
    "lengths' shape": ({"lengths": PROBLEM.lengths[:, None]}, r"lengths .* \(4,\)"),
    "lengths' dtype": ({"lengths": PROBLEM.lengths.float()}, "lengths .*must be of dtype"),
    "a soft cap of nothing": ({"softcap": 0.0}, "softcap is 0.0; it must be a positive number, or None"),
    "no soft cap": ({"softcap": float("nan")}, "softcap is nan; it must be a positive number"),
    "sinks of other heads": ({"sink": torch.ones(2)}, r"sink is \(2,\); it must be of shape \(4,\)"),
    "sinks that are no logits": ({"sink": torch.ones(4, dtype=torch.int32)}, "sink is torch.int32"),
    "sinks elsewhere": ({"sink": torch.ones(4, device="meta")}, "sink is meta; it must be on the query's device"),
    "scales of sequences": (
        {**arguments(QUANTISED), "key_scale": torch.ones(4, 2, 1, device=QUANTISED.q.device)},
        r"key_scale .* or \(18, 1\|2, 16\)",
    ),
}  # fmt: skip
# What fits together, and no kernel serves.
UNSERVED: dict[str, tuple[dict[str, Any], str]] = {
    "double": ({
        "query": PROBLEM.q.double(), "key_pages": PROBLEM.key_pages.double(),
        "value_pages": PROBLEM.value_pages.double(),
    }, "queries of torch.float64"),
    "last stride": ({"key_pages": PROBLEM.key_pages.repeat_interleave(2, 3)[..., ::2]}, "the last stride of key is 2"),
    "table's stride": (
        {"block_table": PROBLEM.table.repeat_interleave(2, 1)[:, ::2]}, "the last stride of block_table is 2"
    ),
    "quantised, float32 queries": ({**arguments(QUANTISED), "query": QUANTISED.q.float()}, "queries of torch"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSERVED)
def test_what_no_kernel_serves_is_sdpas_unless_strict(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, message = UNSERVED[name]
    given = {**arguments(), **changed}
    quantised = given["key_scale"] is not None
    problem = replace(QUANTISED if quantised else PROBLEM, q=given["query"])
    with pytest.raises(SiteNotLoweredError, match=message):
        paged_decode_attention(**given, is_causal=quantised, options=STRICT)
    monkeypatch.undo()
    out = paged_decode_attention(**given, is_causal=quantised)
    assert torch.allclose(out.double(), yardstick(problem).answer, atol=1e-5)


def test_too_many_positions_and_odd_pages_are_refused() -> None:
    with pytest.raises(SiteNotLoweredError, match="18 query positions, more than 16"):
        paged_decode_attention(**{**arguments(), "query": PROBLEM.q.repeat(1, 1, 9, 1)}, options=STRICT)
    twelve = {name: arguments()[name][:, :, :12] for name in ("key_pages", "value_pages")}
    with pytest.raises(SiteNotLoweredError, match="pages of 12 keys"):
        paged_decode_attention(**{**arguments(), **twelve}, options=STRICT)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_named(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(InvalidAttentionInputError, match=message):
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


def test_a_kernel_that_fails_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail(*_: Any, **__: Any) -> Tensor:
        calls.append(1)
        raise RuntimeError("no such kernel")

    monkeypatch.undo()
    monkeypatch.setattr(call_op, "_failed_configs", set())
    monkeypatch.setattr(call_op, "_said", set())
    monkeypatch.setattr(call_op, "launch_decode", fail)
    for _ in range(2):
        assert_within_bound(paged_decode_attention(**arguments()), PROBLEM)
    assert len(calls) == 1
    assert "no such kernel" in caplog.text
    monkeypatch.setattr(call_op, "_failed_configs", set())
    with pytest.raises(KernelLaunchError, match="no such kernel"):
        paged_decode_attention(**arguments(), options=STRICT)


def test_deterministic_gives_each_sequence_the_same_bits_alone() -> None:
    options = DecodeOptions(strict=True, deterministic=True)
    problem = paged_problem((1200, 37, 513), 16, capacity=1200, kv_heads=1)
    given = arguments(problem)
    together = paged_decode_attention(**given, options=options)
    for one in range(3):
        own = {name: given[name][one : one + 1].clone() for name in ("query", "block_table", "lengths")}
        assert torch.equal(paged_decode_attention(**{**given, **own}, options=options)[0], together[one])
