"""CaseGroup: the cases of one (batch, capacity), which share caches and compiled steps, run one after another."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import torch

from ..demo.model_source import load_tokenizer
from .case import Case
from .ceiling import ReadCeiling
from .check import Oracle, StepResult, compare, oracle_rows, run_eager, run_once
from .floor import StepBytes, step_bytes
from .generation import greedy_tokens
from .kernels import profile_step
from .model import BenchModel
from .prompt import prompt_tokens
from .result import CaseResult, CompileFacts, Generation, VariantResult, failure_of
from .settings import Settings
from .state import EAGER_ATTENTION, StepState
from .step import DecodeStep
from .timing import time_steps
from .variant import BASELINE, Variant

Say = Callable[[str], None]


class CaseGroup:
    """Cases of one shape. A variant that fails is listed with its reason in every case.

    Args:
        model: the loaded ``bench_model``.
        say: receives progress, one line at a time.
    """

    def __init__(
        self,
        settings: Settings,
        bench_model: BenchModel,
        model: Any,
        oracle: Oracle | None,
        cases: list[Case],
        say: Say,
    ) -> None:
        self.settings = settings
        self.oracle = oracle
        self.cases = cases
        self.say = say
        self.tokenizer = None if bench_model.source is None else load_tokenizer(bench_model.source)
        self.state = self._create_state(model)
        self.steps: dict[Variant, DecodeStep] = {}
        self.failures: dict[Variant, str] = {}

    def run(self, ceilings: dict[Case, ReadCeiling | None]) -> list[CaseResult]:
        """Compile every variant once, then check and time it in each case."""
        self.state.fill(self.cases[0].held, self.settings.seed)
        for variant in self.settings.variants:
            self._compile(variant)
        return [self._run_case(case, ceilings[case]) for case in self.cases]

    def _create_state(self, model: Any) -> StepState:
        batch, capacity = self.cases[0].batch, self.cases[0].capacity
        prompt = None
        if self.tokenizer is not None:
            length = max(case.held for case in self.cases) + 1
            prompt = prompt_tokens(self.tokenizer, batch, length, model.device)
        return StepState.create(model, batch, capacity, prompt)

    def _compile(self, variant: Variant) -> None:
        self.say(f"batch {self.cases[0].batch}, capacity {self.cases[0].capacity}: compiling {variant.name}")
        try:
            step = DecodeStep(variant, self.state, self.settings.mode)
            step.compile(self.cases[0].held)
        except Exception as error:  # a peer that cannot run is a result, not the end of the run
            self._fail(variant, error)
        else:
            self.steps[variant] = step

    def _fail(self, variant: Variant, error: Exception) -> None:
        self.failures[variant] = failure_of(error)
        self.say(f"{variant.name} failed\n{traceback.format_exc()}")

    def _run_case(self, case: Case, ceiling: ReadCeiling | None) -> CaseResult:
        self.say(f"case {case}: checking and timing")
        self.state.fill(case.held, self.settings.seed)
        results = {variant: VariantResult(variant) for variant in self.settings.variants}
        eager_error = self._check(case, results)
        running = [result for variant, result in results.items() if variant not in self.failures]
        self._generate(case, running)
        steps = [self.steps[result.variant] for result in running]
        for result, times in zip(running, time_steps(steps, case.held, self.settings.rounds), strict=True):
            result.times = times
        self._profile(case, running)
        for variant, result in results.items():
            result.failure = self.failures.get(variant)
            result.compiled = compile_facts(self.steps[variant]) if variant in self.steps else None
        size, layers = step_bytes(self.state.model, case), len(self.state.cache.layers)
        outcome = CaseResult(case, layers, size, ceiling, list(results.values()), eager_error, notes(size, ceiling))
        self.say(summary(outcome))
        return outcome

    def _check(self, case: Case, results: dict[Variant, VariantResult]) -> float | None:
        """Set every result's errors; return eager's own against float64."""
        rows = oracle_rows(self.state.token)
        truth = None if self.oracle is None else self.oracle.logits(self.state, case.held)
        eager = run_eager(self.state, case.held)
        observed = self._observe(case)
        for variant, own in observed.items():
            results[variant].errors = compare(own, eager, observed.get(BASELINE), truth, rows)
        return None if truth is None else compare(eager, eager, None, truth, rows).logits_float64

    def _observe(self, case: Case) -> dict[Variant, StepResult]:
        observed = {}
        for variant, step in self.steps.items():
            if variant in self.failures:
                continue
            try:
                observed[variant] = run_once(step, case.held)
            except Exception as error:  # as above
                self._fail(variant, error)
        return observed

    def _generate(self, case: Case, running: list[VariantResult]) -> None:
        """Greedy decoding, of a real model only."""
        if self.tokenizer is None:
            return
        state, count = self.state, self.settings.generated
        state.model.set_attn_implementation(EAGER_ATTENTION)
        expected, _ = greedy_tokens(state.eager_step, state, case.held, count)
        for result in running:
            step = self.steps[result.variant]
            step.select()
            greedy_tokens(step, state, case.held, min(count, 4))
            tokens, elapsed_s = greedy_tokens(step, state, case.held, count)
            result.generation = Generation(
                tokens_per_s=tokens.numel() / elapsed_s,
                steps=count,
                equals_eager=torch.equal(tokens, expected),
                text=self.tokenizer.decode(tokens[0]),
            )

    def _profile(self, case: Case, running: list[VariantResult]) -> None:
        if not self.settings.profile:
            return
        for result in running:
            step = self.steps[result.variant]
            step.select()
            self.state.set_length(case.held)
            step()
            step()
            try:
                result.profile = profile_step(step, self.state.token.device)
            except RuntimeError as error:  # the profiler may be unusable (busy, or not permitted); the times stand
                self.say(f"no profile of {result.variant.name}: {error}")
            else:
                self.say(f"{case} {result.variant.name}, per step:\n{result.profile}")


def notes(size: StepBytes, ceiling: ReadCeiling | None) -> list[str]:
    """What a reader of a case's figures has to know."""
    if ceiling is not None and ceiling.region_bytes < size.all_bytes:
        return [f"the read ceiling was measured over {ceiling.region_bytes} bytes: more did not fit"]
    return []


def summary(outcome: CaseResult) -> str:
    """One line on a case as soon as it is done."""
    times = {variant.variant.name: outcome.step_us(variant.variant) for variant in outcome.variants}
    shown = [f"{name} {'failed' if us is None else f'{us * 1e-3:.3f} ms'}" for name, us in times.items()]
    if outcome.all_floor_us is not None:
        shown.append(f"floor {outcome.all_floor_us * 1e-3:.3f} ms")
    return f"case {outcome.case}: {', '.join(shown)}"


def compile_facts(step: DecodeStep) -> CompileFacts:
    """What compiling a step came to; sites are known of our own backend only."""
    facts = CompileFacts(step.first_call_s, step.graphs, step.cudagraph_skips)
    if not step.variant.is_ours:
        return facts
    sites = step.report.sites
    return CompileFacts(
        facts.first_call_s,
        facts.graphs,
        facts.cudagraph_skips,
        sites=len(sites),
        lowered=len(step.report.lowered),
        reasons=tuple(sorted({site.reason for site in sites if not site.lowered})),
    )
