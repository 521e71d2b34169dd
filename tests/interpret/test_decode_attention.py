"""Decode attention called by name, with its log-sum-exp: right, one node, named where it is wrong, and PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler import DecodeOptions, decode_attention, paged_decode_attention, quantised_decode_attention
from prefetch_compiler.errors import InvalidAttentionInputError, KernelLaunchError, SiteNotLoweredError
from prefetch_compiler.lower import call_op
from prefetch_compiler.lower.ops import DECODE_ATTENTION_LSE

from ..contract.error_bounds import assert_lse_within_bound, assert_within_bound

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

STRICT = DecodeOptions(strict=True)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, HEADS, KV_HEADS, KEYS, DIM = 3, 4, 2, 40, 16


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@dataclass
class Problem:
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    is_causal: bool = False
    scale: float = DIM**-0.5
    softcap: float | None = None
    sink: Tensor | None = None

    def solved(self, **more: Any) -> Any:
        return decode_attention(
            self.q, self.k, self.v, self.mask, is_causal=self.is_causal, softcap=self.softcap, sink=self.sink,
            return_lse=True, **more,
        )  # fmt: skip


def problem(q_len: int = 2, **more: Any) -> Problem:
    keys, values = (normal(BATCH, KV_HEADS, KEYS, DIM, seed=seed) for seed in (1, 2))
    return Problem(normal(BATCH, HEADS, q_len, DIM), keys, values, **more)


def some_rows_see_nothing() -> Tensor:
    visible = torch.rand(BATCH, 1, 2, KEYS, generator=torch.Generator().manual_seed(3)) < 0.5
    visible[1, :, 0] = False
    return visible.to(DEVICE)


PROBLEMS = {
    "plain": problem,
    "rows of nothing": lambda: problem(mask=some_rows_see_nothing()),
    "capped, with sinks": lambda: problem(softcap=3.0, sink=normal(HEADS, seed=5), mask=some_rows_see_nothing()),
    "causal": lambda: problem(is_causal=True),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_follows_the_oracle(name: str) -> None:
    given = PROBLEMS[name]()
    out, lse = given.solved(options=STRICT)
    assert_within_bound(out, given)
    assert_lse_within_bound(lse, given)


def merged(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """As docs/forms.md has it."""
    outs, lses = zip(*parts, strict=True)
    weights = torch.softmax(torch.stack(lses), 0)
    return (weights[..., None] * torch.stack(outs)).sum(0)


def test_parts_of_a_cache_merge_to_the_whole() -> None:
    whole = problem()
    lengths = torch.tensor([3, 24, 17], dtype=torch.int32, device=DEVICE)
    first = decode_attention(whole.q, whole.k[:, :, :16], whole.v[:, :, :16], return_lse=True, options=STRICT)
    rest = decode_attention(
        whole.q, whole.k[:, :, 16:], whole.v[:, :, 16:], lengths=lengths, return_lse=True, options=STRICT
    )
    whole.mask = torch.arange(KEYS, device=DEVICE) < (16 + lengths)[:, None, None, None]
    assert_within_bound(merged([first, rest]), whole)  # type: ignore[list-item]


def test_quantised_and_paged_calls_return_it_too() -> None:
    """Numbers that a byte holds exactly, in one piece and in pages."""
    given = problem(q_len=1)
    numbers = [(tensor * 4).round().clamp(-8, 7) for tensor in (given.k, given.v)]
    given.q, given.k, given.v = given.q.bfloat16(), *(tensor.double() for tensor in numbers)
    stored = [tensor.to(torch.int8) for tensor in numbers]
    out, lse = quantised_decode_attention(given.q, *stored, return_lse=True, options=STRICT)
    assert_within_bound(out, given)  # type: ignore[arg-type]
    assert_lse_within_bound(lse, given)
    pools = [tensor.view(BATCH, KV_HEADS, 5, 8, DIM).transpose(1, 2).flatten(0, 1).bfloat16() for tensor in numbers]
    table = torch.arange(BATCH * 5, dtype=torch.int32, device=DEVICE).view(BATCH, 5)
    lengths = torch.full((BATCH,), KEYS, device=DEVICE)
    _, paged_lse = paged_decode_attention(given.q, *pools, table, lengths, return_lse=True, options=STRICT)
    assert_lse_within_bound(paged_lse, given)


def test_it_is_one_node_of_two_results() -> None:
    given = problem()
    arguments = (given.q, given.k, given.v, given.mask)
    expected = decode_attention(*arguments, return_lse=True)
    step = torch.compile(lambda *x: decode_attention(*x, return_lse=True), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for have, want in zip(step(*arguments), expected, strict=True):
            assert torch.equal(have, want)


@pytest.mark.parametrize("which", ["called", "lowered"])
def test_the_operators_keep_their_promises(which: str) -> None:
    given = problem()
    operands: tuple[Any, ...]
    if which == "called":
        operator = call_op.CALLED_ATTENTION_LSE
        operands = (*_call(given), None, None, "", *(False,) * 3, [])
    else:
        operator = DECODE_ATTENTION_LSE
        config = call_op._selected(
            call_op.spec_of(call_op._read((*_call(given), False, False, False, []))[0]), DEVICE, DecodeOptions()
        )
        operands = (given.q, given.k, given.v, None, None, False, 0.25, False, config.encode(), 0, True)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(operator, operands, test_utils=tests)


def _call(given: Problem) -> tuple[Any, ...]:
    return (given.q, given.k, given.v, *(None,) * 7, False, 0.25, None, "decode_attention")


def test_what_no_kernel_serves_is_pytorchs() -> None:
    given = problem(q_len=17)
    out, lse = given.solved()
    assert_within_bound(out, given)
    assert_lse_within_bound(lse, given)
    with pytest.raises(SiteNotLoweredError, match=r"decode_attention.*17 query positions"):
        given.solved(options=STRICT)


def test_a_kernel_that_fails_leaves_both_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(call_op, "launch_decode", fail)
    monkeypatch.setattr(call_op, "_failed_configs", set())
    given = problem(mask=some_rows_see_nothing())
    out, lse = given.solved()
    assert_within_bound(out, given)
    assert_lse_within_bound(lse, given)
    monkeypatch.setattr(call_op, "_failed_configs", set())
    with pytest.raises(KernelLaunchError, match="no such kernel"):
        given.solved(options=STRICT)


def test_a_cache_of_another_dtype_is_named() -> None:
    given = problem()
    given.k = given.k.bfloat16()
    with pytest.raises(InvalidAttentionInputError, match=r"decode_attention.*key.*bfloat16.*query's dtype"):
        given.solved()
