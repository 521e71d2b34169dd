"""Run a golden graph eagerly and compiled, each on inputs of its own; compare what they returned and wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from prefetch_compiler.report import Report, collect_reports

from ..error_bounds import assert_within_bound
from .graph import Attention, Golden, Inputs, noted


@dataclass(frozen=True)
class Run:
    """``outputs`` of every attention of every step, and the inputs as the last step left them."""

    outputs: list[Tensor]
    inputs: Sequence[Inputs]


@contextmanager
def recorded_attention() -> Iterator[list[Attention]]:
    """Collect the operands of every eager SDPA call inside the ``with`` block."""
    calls: list[Attention] = []
    sdpa = functional.scaled_dot_product_attention

    def record(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        mask = None if attn_mask is None else attn_mask.clone()
        exact_scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
        operands = [query.clone(), key.clone(), value.clone()]
        if query.ndim == 3:  # heads, of one sequence
            operands = [operand.unsqueeze(0) for operand in operands]
        calls.append(Attention(*operands, mask, is_causal, exact_scale))
        return sdpa(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip

    with mock.patch.object(functional, "scaled_dot_product_attention", record):
        yield calls


def run_eagerly(golden: Golden) -> tuple[Run, list[Attention]]:
    """By the math backend, which is what SDPA's documentation says. On a GPU the fused ones differ from it and from
    each other on rows that hide every key: cuDNN averages by the raw scores, memory-efficient attention gives 0."""
    noted()
    with recorded_attention() as problems, sdpa_kernel(SDPBackend.MATH):
        run = _run(golden, golden.program)
    return run, [*problems, *noted()]


def run_compiled(golden: Golden, **options: Any) -> tuple[Run, Report]:
    """Compile afresh and run; ``options`` are torch.compile's."""
    torch._dynamo.reset()
    with collect_reports() as report:
        run = _run(golden, torch.compile(golden.program, backend="kvprefetch", **options))
    return run, report


def _run(golden: Golden, program: Callable[..., Any]) -> Run:
    steps = golden.steps()
    outputs: list[Tensor] = []
    with torch.no_grad():
        for inputs in steps:
            result = program(**inputs)
            outputs.extend(result if isinstance(result, tuple) else (result,))
    return Run(outputs, steps)


def assert_follows_eager(run: Run, eager: Run, problems: Sequence[Attention]) -> None:
    """Every output errs no more than it may, as eager's own does; every input, caches above all, ends as eager's."""
    assert len(run.outputs) == len(eager.outputs) == len(problems)
    for output, reference, problem in zip(run.outputs, eager.outputs, problems, strict=True):
        assert_within_bound(reference, problem)
        assert_within_bound(output, problem)
    assert_same_inputs(run.inputs, eager.inputs)


def assert_same_inputs(actual: Sequence[Inputs], expected: Sequence[Inputs]) -> None:
    """Bit for bit: what was written was copied, not computed."""
    for step, (have, want) in enumerate(zip(actual, expected, strict=True)):
        for name, value in want.items():
            if isinstance(value, Tensor):
                assert torch.equal(have[name], value), f"step {step} leaves another {name} than eager"
