"""The correctness guard: every variant's logits and cache writes, from the same state, beside eager and float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import DynamicCache

from .state import EAGER_ATTENTION, StepState
from .step import DecodeStep

# The oracle recomputes this many sequences of the batch: rows are independent, and float64 is large.
ORACLE_ROWS = 4


@dataclass(frozen=True)
class StepResult:
    """What one step from the shared state left behind.

    Attributes:
        logits: (batch, vocabulary) float32.
        written: keys and values at the written position, (layers, 2, batch, kv_heads, head_dim).
        lengths_advanced: whether every layer's fill level grew by one.
    """

    logits: torch.Tensor
    written: torch.Tensor
    lengths_advanced: bool


@dataclass(frozen=True)
class Errors:
    """Relative errors ‖a − b‖ / ‖b‖ of one variant; None where there is nothing to compare with.

    ``logits_float64`` is over the oracle's rows, ``logits_eager`` and ``logits_inductor`` over the whole batch,
    ``cache_eager`` over the keys and values that the step wrote. NaN means that something was not written.
    """

    logits_float64: float | None
    logits_eager: float
    logits_inductor: float | None
    cache_eager: float
    lengths_advanced: bool

    def to_dict(self) -> dict[str, float | bool | None]:
        return asdict(self)


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """‖result − reference‖ / ‖reference‖ in float64; NaN stays NaN."""
    reference = reference.double()
    return float((result.double() - reference).norm() / reference.norm())


def upper_quartile_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """The relative error that three of four sequences do not exceed; ``result`` and ``reference`` (batch, ...)."""
    errors = [relative_error(own, exact) for own, exact in zip(result, reference, strict=True)]
    return float(torch.tensor(errors, dtype=torch.float64).quantile(0.75))


def run_once(step: DecodeStep, held: int) -> StepResult:
    """One compiled step from ``held`` keys. The row it has to write is NaN before."""
    step.select()
    return _observe(step.state, step, held)


def run_eager(state: StepState, held: int) -> StepResult:
    """The uncompiled model with SDPA, from the same state."""
    state.model.set_attn_implementation(EAGER_ATTENTION)
    return _observe(state, state.eager_step, held)


def _observe(state: StepState, step: Callable[[], torch.Tensor], held: int) -> StepResult:
    state.set_length(held)
    state.poison_row(held)
    logits = step()[:, -1].float().clone()
    advanced = all(length == held + 1 for length in state.lengths())
    written = state.written_row(held)
    state.set_length(held)
    return StepResult(logits, written, advanced)


class Oracle:
    """The model in float64 over the valid keys only, with no mask at all: it cannot share a mistake about masks."""

    def __init__(self, model: Any) -> None:
        model.set_attn_implementation(EAGER_ATTENTION)
        self.model = copy.deepcopy(model).double()

    def logits(self, state: StepState, held: int) -> torch.Tensor:
        """Logits (rows, vocabulary) in float64 of :func:`oracle_rows`."""
        rows = oracle_rows(state.token)
        cache = DynamicCache(config=self.model.config)
        for index, layer in enumerate(state.cache.layers):
            keys, values = layer.keys[rows, :, :held], layer.values[rows, :, :held]
            cache.update(keys.double(), values.double(), index)
        with torch.no_grad():
            output = self.model(state.token[rows], past_key_values=cache, use_cache=True)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def oracle_rows(token: torch.Tensor) -> torch.Tensor:
    """Indices of the sequences that the oracle recomputes, spread over the batch."""
    batch = token.shape[0]
    return torch.linspace(0, batch - 1, min(batch, ORACLE_ROWS), device=token.device).round().long()


def compare(
    result: StepResult, eager: StepResult, baseline: StepResult | None, oracle: torch.Tensor | None, rows: torch.Tensor
) -> Errors:
    """Errors of one result against everything there is to compare with."""
    return Errors(
        logits_float64=None if oracle is None else relative_error(result.logits[rows], oracle),
        logits_eager=relative_error(result.logits, eager.logits),
        logits_inductor=None if baseline is None else relative_error(result.logits, baseline.logits),
        cache_eager=relative_error(result.written, eager.written),
        lengths_advanced=result.lengths_advanced,
    )
