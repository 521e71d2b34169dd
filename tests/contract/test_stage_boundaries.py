"""Total fallback, at every boundary between stages that the sources have (``stages.py``): whatever a stage does, the
result is right and the report says why the site was left; ``strict`` raises an error of ours.

A new stage is among the boundaries by itself. It has to be reached by one of the scenarios below, or be listed with the
reason why a failure in it is not ours to catch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn import functional

from prefetch_compiler import DecodeOptions, decode_attention
from prefetch_compiler.errors import KVPrefetchError
from prefetch_compiler.lower import call_op, ops
from prefetch_compiler.report import Report, collect_reports

from .stages import Boundary, boundaries
from .uncompiled import graphs_run_uncompiled

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class InjectedError(Exception):
    """What a test puts into a stage."""


# Every fault at every boundary with and without strict, and not only those that differ the most.
EVERY_FAULT = os.environ.get("KVPREFETCH_EVERY_FAULT") == "1"


@dataclass(frozen=True)
class Fault:
    """``make`` turns a stage into one that fails, noting that it was asked."""

    name: str
    result: Callable[[], Any]

    def make(self, reached: list[None]) -> Callable[[Any], Any]:
        def fail(*_: Any, **__: Any) -> Any:
            reached.append(None)
            return self.result()

        return lambda original: staticmethod(fail) if isinstance(original, staticmethod) else fail


def _raise(error: Exception) -> Any:
    raise error


EXCEPTION = Fault("an exception", lambda: _raise(InjectedError("on purpose")))
TIMEOUT = Fault("a timeout", lambda: _raise(TimeoutError("on purpose")))
WRONG_TYPE = Fault("a wrong type", object)


@cache
def operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 4, 1, 16), (2, 2, 40, 16), (2, 2, 40, 16))
    q, k, v = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    held = torch.tensor([17, 33], device=DEVICE)
    return q, k, v, (torch.arange(40, device=DEVICE) < held[:, None])[:, None, None]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    # As models with grouped queries write it.
    k, v = (one.repeat_interleave(2, dim=1) for one in (k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _in_a_graph(strict: bool, generated: bool = False) -> tuple[Tensor, Report]:
    torch._dynamo.reset()
    options = {"kvprefetch.strict": strict}
    with nullcontext() if generated else graphs_run_uncompiled(), collect_reports() as report, torch.no_grad():
        return torch.compile(attend, backend="kvprefetch", options=options)(*operands()), report


def _by_name(strict: bool) -> tuple[Tensor, Report]:
    q, k, v, mask = operands()
    call_op.forget_selections()
    with collect_reports() as report, torch.no_grad():
        result = decode_attention(q, k, v, mask, options=DecodeOptions(strict=strict))
    assert isinstance(result, Tensor)
    return result, report


# Of the operator of calls by name, what is no stage of its own in the other.
BY_NAME = "lower.call_op"
# Inductor asks the pass for what its cache of compiled graphs is keyed by only where it generates code.
GENERATED = ("selection_digests", "digest_of", "visible_profiles")

FALLBACK = "is what serves where a kernel fails: there is nothing behind it but the error itself"
USERS = "says what is wrong with what the user gave, which is to be raised"
OF_A_FAILURE = "runs only where another stage has failed; test_fallback.py makes both fail"
OF_A_RESET = "runs in torch.compiler.reset(), not in a compile"
OF_EXPORT = "runs only where kernels are embedded (tests/export)"
NOT_INJECTED = {
    "backend: split_options": USERS,
    "lower.call_op: check_call": USERS,
    "lower.call_op: mask_bounds": "is plain PyTorch over the caller's mask, traced with the caller's code",
    "lower.call_op: AttentionCall": "holds the operator's operands",
    "lower.call_op: AttentionCall._replace": "holds the operator's operands",
    "lower.call_op: DecodeOptions": "holds the operator's operands",
    "lower.call_op: empty_lse": "allocates a result of the operator's",
    "lower.call_op: fake_output": "says the operator's shape to whoever traces the caller",
    "lower.call_op: plain_attention": FALLBACK,
    "lower.call_op: load_or_none": "is patched in backend, and fails to no databases by itself (tests/database)",
    "lower.call_op: why_wrong": "runs only for a stale record under strict, and never raises (tests/database)",
    "lower.rewrite: why_wrong": "runs only for a stale record under strict, and never raises (tests/database)",
    "lower.ops: same_dtype_attention": FALLBACK,
    "lower.ops: same_dtype_lse": FALLBACK,
    "lower.ops: in_memory_order": FALLBACK,
    "lower.ops: dequantise": FALLBACK,
    "lower.ops: call_sdpa": FALLBACK,
    "lower.ops: in_one_piece": FALLBACK,
    "lower.ops: granularity_of": FALLBACK,
    "lower.ops: Storage.encode": "is KernelConfig's where this module calls it",
    "lower.ops: empty_lse": "allocates a result of the operator's",
    "backend: Marks": OF_A_FAILURE,
    "backend: Marks.undo": OF_A_FAILURE,
    "backend: SiteReport": OF_A_FAILURE,
    "lower.rewrite: is_marker": OF_A_FAILURE,
    "backend: overlay.forget": OF_A_RESET,
    "backend: forget_failed_launches": OF_A_RESET,
    "backend: forget_selections": OF_A_RESET,
    "lower.rewrite: embeddable": OF_EXPORT,
    "lower.rewrite: is_embeddable": OF_EXPORT,
    "lower.rewrite: emit_launches": OF_EXPORT,
    "lower.rewrite: is_symbolic": "runs only where one sequence's cache serves a batch of unknown size",
}
INJECTED = [boundary for boundary in boundaries() if boundary.name not in NOT_INJECTED]
# What these return is used in every call, by the dispatcher and by launches, and is checked there or nowhere.
IN_EVERY_CALL = ("lower.ops: launch_decode", "lower.call_op: launch_decode", "lower.call_op: for_these_addresses")


def _runs() -> Iterator[Any]:
    for boundary in INJECTED:
        wanted = [(EXCEPTION, False), (EXCEPTION, True), (WRONG_TYPE, False)]
        if EVERY_FAULT:
            wanted += [(TIMEOUT, False), (TIMEOUT, True), (WRONG_TYPE, True)]
        for fault, strict in wanted:
            if fault is not WRONG_TYPE or boundary.name not in IN_EVERY_CALL:
                yield pytest.param(boundary, fault, strict, id=f"{boundary.name}-{fault.name}{'-strict' * strict}")


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ops, "_failed_configs", {})
    monkeypatch.setattr(call_op, "_failed_configs", set())
    yield
    torch._dynamo.reset()
    call_op.forget_selections()


@cache
def eager() -> Tensor:
    return attend(*operands())


def scenario(boundary: Boundary) -> Callable[[bool], tuple[Tensor, Report]]:
    if boundary.module == BY_NAME:
        return _by_name
    return lambda strict: _in_a_graph(strict, generated=boundary.path[-1] in GENERATED)


def test_what_is_not_injected_is_a_boundary_still() -> None:
    assert sorted(NOT_INJECTED.keys() - {boundary.name for boundary in boundaries()}) == []


@pytest.mark.parametrize(("boundary", "fault", "strict"), _runs())
def test_whatever_a_stage_does(boundary: Boundary, fault: Fault, strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    run, reached = scenario(boundary), list[None]()
    boundary.replace(monkeypatch, fault.make(reached))
    try:
        result, report = run(strict)
    except Exception as error:
        cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        assert strict, repr(cause)
        assert isinstance(cause, KVPrefetchError), repr(cause)
        return
    assert reached, f"{boundary.name} is reached by no scenario: add one, or say in NOT_INJECTED why not"
    torch.testing.assert_close(result, eager())
    # Under strict, a fault that raises nothing must have cost nothing.
    assert all(site.lowered or (site.reason and not strict) for site in report.sites)
    if fault is not WRONG_TYPE:
        assert all(site.lowered or "on purpose" in site.reason for site in report.sites)
