"""One architecture: every variant's decode step over the same state, checked and timed."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from ..case import Case
from ..check import Errors, relative_error, upper_quartile_error
from ..flex_mask import unbroken_block_mask
from ..floor import step_bytes
from ..group import compile_facts
from ..model import BenchModel
from ..result import CaseResult, VariantResult, failure_of
from ..rounds import Rounds
from ..state import StepState
from ..step import DecodeStep, fresh_compiler
from ..timing import time_steps
from ..variant import BACKEND, FLEX, Variant
from .catalogue import Architecture
from .state import WindowedState

Say = Callable[[str], None]
ErrorOf = Callable[[torch.Tensor, torch.Tensor], float]
T = TypeVar("T")


@dataclass(frozen=True)
class ArchitectureResult:
    """What the variants took and erred; ``outcome`` has no floor."""

    architecture: Architecture
    outcome: CaseResult

    def step_us(self, name: str) -> float | None:
        """Median device time of a variant's step; None if it failed."""
        for result in self.outcome.variants:
            if result.variant.name == name:
                return self.outcome.step_us(result.variant)
        return None

    def to_dict(self) -> dict[str, Any]:
        outcome = self.outcome.to_dict()
        kept = {name: outcome[name] for name in ("case", "layers", "eager_float64_error", "variants")}
        return {"architecture": self.architecture.name, "attention": self.architecture.attention, **kept}


@dataclass(frozen=True)
class _Observed:
    logits: torch.Tensor
    contents: list[torch.Tensor]
    lengths: list[int]


def variants_of(architecture: Architecture) -> tuple[Variant, ...]:
    """Inductor with the architecture's attention, Inductor with FlexAttention, ours."""
    return (
        Variant("inductor", "inductor", architecture.attention),
        FLEX,
        Variant(BACKEND, BACKEND, architecture.attention),
    )


def measure(
    architecture: Architecture, case: Case, rounds: Rounds, mode: str, device: torch.device, say: Say, seed: int = 0
) -> ArchitectureResult:
    """A variant that cannot run is listed with its reason."""
    random = BenchModel(architecture.name, architecture.config(), attention=architecture.attention)
    model = random.load(device, torch.bfloat16, seed)
    with fresh_compiler(), unbroken_block_mask():
        state = WindowedState.of(architecture, model, case)
        state.fill(case.held, seed)
        results = [VariantResult(variant) for variant in variants_of(architecture)]
        steps = [(result, _compiled(result, state, case, mode, say)) for result in results]
        compiled = [(result, step) for result, step in steps if step is not None]
        eager_error = _check(architecture, compiled, state, case, seed, say)
        _time([(result, step) for result, step in compiled if result.failure is None], case, rounds)
    layers = len(state.cache.layers)
    outcome = CaseResult(case, layers, step_bytes(model, case), None, results, eager_error)
    return ArchitectureResult(architecture, outcome)


def _compiled(result: VariantResult, state: StepState, case: Case, mode: str, say: Say) -> DecodeStep | None:
    def compile_step() -> DecodeStep:
        step = DecodeStep(result.variant, state, mode)
        step.compile(case.held)
        return step

    say(f"compiling {result.variant.name}")
    step = _attempt(result, compile_step, say)
    result.compiled = None if step is None else compile_facts(step)
    return step


def _attempt(result: VariantResult, work: Callable[[], T], say: Say) -> T | None:
    """What ``work`` gives. A peer that fails is a result, not the end of the run."""
    try:
        return work()
    except Exception as error:
        result.failure = failure_of(error)
        say(f"{result.variant.name} failed\n{traceback.format_exc()}")
        return None


def _check(
    architecture: Architecture,
    compiled: Sequence[tuple[VariantResult, DecodeStep]],
    state: WindowedState,
    case: Case,
    seed: int,
    say: Say,
) -> float:
    """Set every result's errors; return eager's own against float64."""
    state.model.set_attn_implementation(architecture.attention)
    eager = _observed(state, state.eager_step, case, seed)
    state.fill(case.held, seed)
    exact_state = state.in_float64(_in_float64(state.model))
    exact = exact_state.eager_step()[:, -1]
    del exact_state
    error_of = upper_quartile_error if architecture.routed else relative_error
    for result, step in compiled:
        result.errors = _attempt(result, partial(_errors, step, eager, exact, error_of, case, seed), say)
    return error_of(eager.logits, exact)


def _in_float64(model: Any) -> Any:
    """A copy, whose experts are computed one by one: grouped products of theirs have no float64."""
    exact = copy.deepcopy(model).double()
    if hasattr(exact, "set_experts_implementation"):
        exact.set_experts_implementation("eager")
    return exact


def _errors(
    step: DecodeStep, eager: _Observed, exact: torch.Tensor, error_of: ErrorOf, case: Case, seed: int
) -> Errors:
    step.select()
    own = _observed(step.state, step, case, seed)
    return Errors(
        logits_float64=error_of(own.logits, exact),
        logits_eager=error_of(own.logits, eager.logits),
        logits_inductor=None,
        cache_eager=max(relative_error(*pair) for pair in zip(own.contents, eager.contents, strict=True)),
        lengths_advanced=own.lengths == eager.lengths,
    )


def _observed(state: Any, step: Callable[[], torch.Tensor], case: Case, seed: int) -> _Observed:
    state.fill(case.held, seed)
    logits = step()[:, -1].float().clone()
    return _Observed(logits, state.contents(), state.lengths())


def _time(running: Sequence[tuple[VariantResult, DecodeStep]], case: Case, rounds: Rounds) -> None:
    times = time_steps([step for _, step in running], case.held, rounds)
    for (result, _), measured in zip(running, times, strict=True):
        result.times = measured
