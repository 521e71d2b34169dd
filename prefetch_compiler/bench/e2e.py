"""The end-to-end run: every variant's whole decode steps, side by side in one process, with the floor."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .case import RANDOM_MODEL_CASES, REAL_MODEL_CASES, Case, by_shape
from .ceiling import ReadCeiling, measure_ceiling
from .check import Oracle, StepResult, compare, oracle_rows, run_eager, run_once
from .compile_time import CompileComparison, compare_compile_time
from .environment import describe_environment
from .floor import StepBytes, step_bytes
from .generation import greedy_tokens
from .kernels import profile_step
from .model import RANDOM_LLAMA, ModelSource, find_model, load_model, load_tokenizer
from .prompt import prompt_tokens
from .result import CaseResult, CompileFacts, Generation, RunResult, VariantResult
from .state import DecodeState
from .step import DecodeStep, fresh_compiler
from .timing import Rounds, time_steps
from .variant import BASELINE, VARIANTS, Variant

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What to run. ``cases`` None takes the defaults for a random or a real model.

    Attributes:
        generated: tokens per sequence that a real model decodes for its tokens per second.
        oracle: also compute each case in float64.
        compile_repeats: cold compiles of Inductor and of ours to time; 0 leaves that out.
    """

    model: str = RANDOM_LLAMA
    layers: int = 8
    cases: tuple[Case, ...] | None = None
    variants: tuple[Variant, ...] = VARIANTS
    mode: str = "reduce-overhead"
    dtype: torch.dtype = torch.bfloat16
    rounds: Rounds = field(default_factory=Rounds)
    generated: int = 128
    profile: bool = False
    oracle: bool = True
    compile_repeats: int = 0
    seed: int = 0

    def source(self) -> ModelSource:
        return find_model(self.model, self.layers)

    def chosen_cases(self) -> tuple[Case, ...]:
        """The cases to run.

        Raises:
            ValueError: a case's cache has no room for the steps of a round.
        """
        default = REAL_MODEL_CASES if self.source().is_real else RANDOM_MODEL_CASES
        cases = self.cases or default
        for case in cases:
            longest = self.rounds.last_length(case.held)
            if self.source().is_real:
                longest = max(longest, case.held + self.generated)
            if longest > case.capacity:
                raise ValueError(f"case {case} needs a capacity of {longest} for its steps; take fewer steps")
        return cases

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "cases": [str(case) for case in self.chosen_cases()],
            "variants": [variant.name for variant in self.variants],
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def run(settings: Settings, device: torch.device, source: ModelSource | None = None, say: Say = print) -> RunResult:
    """Run every case. A variant that fails is listed with its reason.

    Args:
        source: the model, if not the one that ``settings`` names.
        say: receives progress, one line at a time.
    """
    source = source or settings.source()
    result = RunResult(settings.to_dict(), describe_environment(device))
    model = load_model(source, device, settings.dtype, settings.seed)
    oracle = _make_oracle(model, settings, say)
    for group in by_shape(settings.chosen_cases()):
        ceilings = {case: _ceiling(model, case, device) for case in group}
        with fresh_compiler():
            result.cases.extend(_Group(settings, source, model, oracle, group, say).run(ceilings))
    del model, oracle
    if settings.compile_repeats:
        result.compile_time = _time_compiles(settings, device, say)
    return result


def _time_compiles(settings: Settings, device: torch.device, say: Say) -> CompileComparison:
    """Cold compiles of the first case."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    case = settings.chosen_cases()[0]
    say(f"case {case}: timing {settings.compile_repeats} cold compiles each of Inductor and of ours")
    return compare_compile_time(
        settings.model, settings.layers, case, settings.mode, settings.dtype, device, settings.compile_repeats
    )


def _ceiling(model: Any, case: Case, device: torch.device) -> ReadCeiling | None:
    if device.type != "cuda":
        return None
    ceiling = measure_ceiling(step_bytes(model, case).all_bytes, device)
    torch.cuda.empty_cache()
    return ceiling


def _make_oracle(model: Any, settings: Settings, say: Say) -> Oracle | None:
    if not settings.oracle:
        return None
    try:
        return Oracle(model)
    except torch.OutOfMemoryError:
        say("no float64 oracle: it does not fit beside the model")
        return None


class _Group:
    """The cases of one (batch, capacity): they share caches and compiled steps."""

    def __init__(
        self, settings: Settings, source: ModelSource, model: Any, oracle: Oracle | None, cases: list[Case], say: Say
    ) -> None:
        self.settings = settings
        self.source = source
        self.oracle = oracle
        self.cases = cases
        self.say = say
        self.state = _create_state(model, source, cases)
        self.steps: dict[Variant, DecodeStep] = {}
        self.failures: dict[Variant, str] = {}

    def run(self, ceilings: dict[Case, ReadCeiling | None]) -> list[CaseResult]:
        self._compile()
        return [self._run_case(case, ceilings[case]) for case in self.cases]

    def _compile(self) -> None:
        self.state.fill(self.cases[0].held, self.settings.seed)
        for variant in self.settings.variants:
            self.say(f"batch {self.cases[0].batch}, capacity {self.cases[0].capacity}: compiling {variant.name}")
            try:
                step = DecodeStep(variant, self.state, self.settings.mode)
                step.compile(self.cases[0].held)
                self.steps[variant] = step
            except Exception as error:  # a peer that cannot run is a result, not the end of the run
                self.failures[variant] = _reason(error)
                self.say(f"{variant.name} failed\n{traceback.format_exc()}")

    def _run_case(self, case: Case, ceiling: ReadCeiling | None) -> CaseResult:
        self.say(f"case {case}: checking and timing")
        self.state.fill(case.held, self.settings.seed)
        results = [self._start_result(variant) for variant in self.settings.variants]
        eager_error = self._check(case, results)
        running = [result for result in results if result.failure is None]
        if self.source.is_real:
            self._generate(case, running)
        steps = [self.steps[result.variant] for result in running]
        for result, times in zip(running, time_steps(steps, case.held, self.settings.rounds), strict=True):
            result.times = times
        if self.settings.profile:
            self._profile(case, running)
        size = step_bytes(self.state.model, case)
        return CaseResult(case, size, ceiling, results, eager_error, _notes(size, ceiling))

    def _start_result(self, variant: Variant) -> VariantResult:
        if variant in self.failures:
            return VariantResult(variant, failure=self.failures[variant])
        return VariantResult(variant, compiled=_compile_facts(self.steps[variant]))

    def _check(self, case: Case, results: list[VariantResult]) -> float | None:
        """Set every result's errors; return eager's own against float64."""
        rows = oracle_rows(self.state.token)
        truth = None if self.oracle is None else self.oracle.logits(self.state, case.held)
        eager = run_eager(self.state, case.held)
        observed: dict[Variant, StepResult] = {}
        for result in results:
            if result.failure is None:
                self._observe(result, case, observed)
        for result in results:
            if result.variant in observed:
                own = observed[result.variant]
                result.errors = compare(own, eager, observed.get(BASELINE), truth, rows)
        return None if truth is None else compare(eager, eager, None, truth, rows).logits_float64

    def _observe(self, result: VariantResult, case: Case, observed: dict[Variant, StepResult]) -> None:
        try:
            observed[result.variant] = run_once(self.steps[result.variant], case.held)
        except Exception as error:  # as above
            result.failure = _reason(error)

    def _generate(self, case: Case, running: list[VariantResult]) -> None:
        tokenizer = load_tokenizer(self.source)
        state, steps = self.state, self.settings.generated
        state.model.set_attn_implementation("sdpa")
        with torch.no_grad():
            expected, _ = greedy_tokens(
                lambda: state.model(state.token, past_key_values=state.cache, use_cache=True).logits,
                state,
                case.held,
                steps,
            )
        for result in running:
            step = self.steps[result.variant]
            step.select()
            greedy_tokens(step, state, case.held, min(steps, 4))
            tokens, elapsed_s = greedy_tokens(step, state, case.held, steps)
            result.generation = Generation(
                tokens_per_s=tokens.numel() / elapsed_s,
                steps=steps,
                equals_eager=torch.equal(tokens, expected),
                text=tokenizer.decode(tokens[0]),
            )

    def _profile(self, case: Case, running: list[VariantResult]) -> None:
        for result in running:
            step = self.steps[result.variant]
            step.select()
            self.state.set_length(case.held)
            step()
            step()
            result.profile = profile_step(step, self.state.token.device)
            self.say(f"{case} {result.variant.name}, per step:\n{result.profile}")


def _create_state(model: Any, source: ModelSource, cases: list[Case]) -> DecodeState:
    batch, capacity = cases[0].batch, cases[0].capacity
    prompt = None
    if source.is_real:
        length = max(case.held for case in cases) + 1
        prompt = prompt_tokens(load_tokenizer(source), batch, length, model.device)
    model.set_attn_implementation("sdpa")
    return DecodeState.create(model, batch, capacity, prompt)


def _notes(size: StepBytes, ceiling: ReadCeiling | None) -> list[str]:
    """What a reader of the figures has to know."""
    if ceiling is not None and ceiling.region_bytes < size.all_bytes:
        return [f"the read ceiling was measured over {ceiling.region_bytes} bytes: more did not fit"]
    return []


def _compile_facts(step: DecodeStep) -> CompileFacts:
    sites = step.report.sites if step.variant.is_ours else None
    return CompileFacts(
        first_call_s=step.first_call_s,
        graphs=step.graphs,
        cudagraph_skips=step.cudagraph_skips,
        sites=None if sites is None else len(sites),
        lowered=None if sites is None else len(step.report.lowered),
        reasons=() if sites is None else tuple(sorted({site.reason for site in sites if not site.lowered})),
    )


def _reason(error: Exception) -> str:
    """One line: the type and the first line of the message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
