"""The whole run of bench paper on a tiny model, in Triton's interpreter, with a clock by rule in a GPU's place."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from prefetch_compiler.bench.paper import models, run
from prefetch_compiler.bench.paper.case import PaperCase
from prefetch_compiler.bench.paper.contestants import Launch
from prefetch_compiler.bench.paper.inputs import CaseInputs
from prefetch_compiler.bench.paper.models import PaperModel
from prefetch_compiler.bench.paper.ours import Choice, OurConfigs
from prefetch_compiler.bench.paper.result import PaperRun, read_run, write_run
from prefetch_compiler.bench.paper.settings import PaperSettings
from prefetch_compiler.bench.paper.variant import OURS, PAPER_STYLE, Column
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.key import TuningKey
from prefetch_compiler.device import interpreting
from prefetch_compiler.tuning.compile_pool import CompileOutcome
from prefetch_compiler.tuning.protocol import FailureKind, TrialFailure

pytestmark = pytest.mark.skipif(not interpreting(), reason="on a GPU tests/gpu runs the real thing")

CPU = torch.device("cpu")
TINY = PaperModel("Tiny", 4, 2, 32, 1.5)
CASE = PaperCase(TINY, 2, 35)


class CountingClock:
    """Launches everything once, and says that the n-th that was prepared takes n microseconds."""

    def __init__(self, inputs: CaseInputs) -> None:
        self.inputs = inputs
        self.prepared = 0

    def prepare(self, launch: Launch) -> float:
        for cache in range(self.inputs.caches):
            self.inputs.write_queries(cache)
            launch(cache)
        self.prepared += 1
        return float(self.prepared)

    def rounds(self, prepared: Sequence[Any], rounds: int) -> list[list[float]]:
        return [[us] * rounds for us in prepared]


@pytest.fixture(autouse=True)
def _few_caches_and_one_number_of_warps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "caches_for", lambda kv_bytes, l2_bytes: 2)
    monkeypatch.setattr("prefetch_compiler.bench.paper.warps.WARPS", (2,))
    monkeypatch.setattr(models, "MODELS", (*models.MODELS, TINY))


def measured(cases: tuple[PaperCase, ...], **settings: Any) -> PaperRun:
    return run.run(PaperSettings(cases, rounds=2, **settings), CPU, lambda _: None, clock=CountingClock)


def test_every_kernel_is_verified_and_timed_but_for_a_peer_that_cannot_run(tmp_path: Path) -> None:
    result = measured((CASE,), trials=3)
    (case,) = result.cases
    for column in (*PAPER_STYLE, *OURS):
        found = case.find(column)
        assert found is not None and found.failure is None, found
        assert len(found.samples_us) == 2
        assert found.error is not None and 0 < found.error <= 1
    cudnn = case.find(Column.CUDNN)
    assert cudnn is not None and cudnn.failure is not None and not cudnn.samples_us
    assert result.problems == []
    assert (case.caches, case.warps, list(case.probes)) == (2, 2, ["2"])
    assert result.environment["paper_template_sha256"]
    write_run(result, tmp_path / "run.json")
    assert read_run(tmp_path / "run.json") == result


def test_a_wrong_kernel_is_listed_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours returns values that are a tenth too large."""
    real = run.ours

    def wrong(inputs: CaseInputs, column: Column, config: KernelConfig, source: str) -> Any:
        contestant = real(inputs, column, config, source)
        return type(contestant)(column, lambda cache: 1.1 * contestant.launch(cache), contestant.detail)

    config = KernelConfig(64, 1, 1, 1)
    choice = Choice(config, "the test's")
    monkeypatch.setattr(run, "choose_ours", lambda *_: OurConfigs(choice, choice))
    monkeypatch.setattr(run, "ours", wrong)
    result = measured((CASE,))
    for column in OURS:
        found = result.cases[0].find(column)
        assert found is not None and found.failure is not None and not found.samples_us
        assert "times its bound" in found.failure
        assert "the test's" in found.detail
    assert len(result.problems) == 2
    assert result.cases[0].us(Column.NEXT_1) is not None


def test_no_case_is_begun_after_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1.0, 5.0, 50.0, 99.0])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(seconds))
    kept: list[int] = []
    settings = PaperSettings((CASE, PaperCase(TINY, 1, 16)), rounds=1, trials=0, budget_s=10)
    result = run.run(settings, CPU, lambda _: None, lambda so_far: kept.append(len(so_far.cases)), clock=CountingClock)
    assert [case.case for case in result.cases] == ["Tiny:2x35"]
    assert [(left.case, left.reason, left.failed) for left in result.left_out] == [
        ("Tiny:1x16", "the budget of 10 s was spent", False)
    ]
    assert kept == [1]


def test_a_case_that_breaks_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.make_inputs

    def sometimes(case: PaperCase, *rest: Any) -> CaseInputs:
        if case.context == 16:
            raise RuntimeError("broken\nin many words")
        return real(case, *rest)

    monkeypatch.setattr(run, "make_inputs", sometimes)
    result = measured((PaperCase(TINY, 1, 16), CASE), trials=0)
    assert [case.case for case in result.cases] == ["Tiny:2x35"]
    assert result.problems == ["Tiny:1x16: RuntimeError: broken"]


def test_a_configuration_that_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that raises costs its own configuration alone."""
    real = run.ours

    def flaky(inputs: CaseInputs, column: Column, config: KernelConfig, source: str) -> Any:
        contestant = real(inputs, column, config, source)

        def refuse(cache: int) -> torch.Tensor:
            raise RuntimeError("out of resources")

        return type(contestant)(column, refuse, "") if config.num_splits == 2 else contestant

    inputs = run.make_inputs(CASE, 1, CPU, 0)
    monkeypatch.setattr(run, "ours", flaky)
    configs = [KernelConfig(16, splits, 1, 1) for splits in (1, 2, 3)]
    times = run._time_configs(configs, inputs, run.yardstick_of(inputs), CountingClock(inputs), None)
    assert times == [1.0, None, 2.0]


class RefusingCompiler:
    """Compiles nothing with two warps, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[KernelConfig] = []

    def submit(self, key: TuningKey, config: KernelConfig) -> Future[CompileOutcome]:
        self.asked.append(config)
        future: Future[CompileOutcome] = Future()
        refused = TrialFailure(FailureKind.COMPILE_ERROR, "no", 0.0)
        future.set_result(refused if config.num_warps == 2 else ())
        return future

    def close(self) -> None: ...


def test_what_does_not_compile_is_not_launched() -> None:
    compiler = RefusingCompiler()
    settings = PaperSettings((CASE,), rounds=1, trials=4)
    result = run.run(settings, CPU, lambda _: None, clock=CountingClock, compiler=compiler)
    inputs = run.make_inputs(CASE, 1, CPU, 0)
    configs = [KernelConfig(16, 1, warps, 1) for warps in (1, 2)]
    times = run._time_configs(configs, inputs, run.yardstick_of(inputs), CountingClock(inputs), compiler)
    assert times == [1.0, None]
    assert compiler.asked[-2:] == configs
    # The same ahead of the run, and for the search itself.
    assert compiler.asked.count(compiler.asked[0]) >= 2
    assert result.problems == []
