"""The end-to-end run on a tiny model on the CPU: set-up, checks and timing loops, with backends that need no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, MistralConfig
from typer.testing import CliRunner

from prefetch_compiler.bench.case import Case
from prefetch_compiler.bench.ceiling import LAUNCH_SHAPES, launch_read
from prefetch_compiler.bench.check import Errors, Oracle, oracle_rows, relative_error, run_eager, run_once
from prefetch_compiler.bench.cli import app
from prefetch_compiler.bench.compile_time import CompileJob, run_in_new_process
from prefetch_compiler.bench.e2e import Keep, run
from prefetch_compiler.bench.environment import describe_environment
from prefetch_compiler.bench.errors import CompileJobError, ShortPromptError, UnsupportedCacheError
from prefetch_compiler.bench.flex_mask import unbroken_block_mask
from prefetch_compiler.bench.floor import StepBytes
from prefetch_compiler.bench.generation import greedy_tokens
from prefetch_compiler.bench.group import Say
from prefetch_compiler.bench.model import BenchModel
from prefetch_compiler.bench.prompt import prompt_tokens
from prefetch_compiler.bench.result import CaseResult, CompileFacts, RunResult, VariantResult
from prefetch_compiler.bench.rounds import Rounds
from prefetch_compiler.bench.samples import Samples
from prefetch_compiler.bench.settings import Settings
from prefetch_compiler.bench.state import StepState
from prefetch_compiler.bench.step import DecodeStep, fresh_compiler
from prefetch_compiler.bench.table import e2e_tables, plain_text, show
from prefetch_compiler.bench.timing import StepTimes
from prefetch_compiler.bench.variant import OURS, Variant

CPU = torch.device("cpu")
HELD = 20
TRACED = Variant("inductor+sdpa", "eager", "sdpa")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TINY = BenchModel("tiny", LlamaConfig(**SIZES))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    loaded: torch.nn.Module = TINY.load(CPU, torch.float32)
    return loaded


@pytest.fixture
def state(model: torch.nn.Module) -> StepState:
    created = StepState.create(model, batch=3, capacity=64)
    created.fill(HELD)
    return created


@pytest.fixture(autouse=True)
def _one_compiler_per_test() -> Iterator[None]:
    with fresh_compiler():
        yield


def test_fill_holds_what_it_says_and_no_zeros(state: StepState) -> None:
    assert state.lengths() == [HELD, HELD]
    assert state.capacity == 64
    for layer in state.cache.layers:
        assert layer.keys.count_nonzero() == layer.keys.numel()
        assert layer.values.count_nonzero() == layer.values.numel()


def test_eager_step_agrees_with_the_float64_oracle(model: torch.nn.Module, state: StepState) -> None:
    expected = Oracle(model).logits(state, HELD)
    result = run_eager(state, HELD)
    assert relative_error(result.logits[oracle_rows(state.token)], expected) < 1e-5
    assert result.lengths_advanced
    assert state.lengths() == [HELD, HELD]


def test_compiled_step_equals_eager_and_writes_its_row(state: StepState) -> None:
    step = DecodeStep(TRACED, state, mode="default")
    step.compile(HELD)
    eager, compiled = run_eager(state, HELD), run_once(step, HELD)
    torch.testing.assert_close(compiled.logits, eager.logits)
    torch.testing.assert_close(compiled.written, eager.written)
    assert compiled.lengths_advanced
    assert step.graphs == 1
    assert step.first_call_s > 0


def test_flex_attention_compiles_into_one_graph(state: StepState) -> None:
    step = DecodeStep(Variant("flex", "eager", "flex_attention"), state, mode="default")
    with unbroken_block_mask():
        step.compile(HELD)
    assert step.graphs == 1


def test_a_step_that_does_not_write_is_seen(state: StepState) -> None:
    class IdleStep(DecodeStep):
        def __call__(self) -> torch.Tensor:
            return torch.zeros(3, 1, 128)

    result = run_once(IdleStep(TRACED, state, mode="default"), HELD)
    assert result.written.isnan().all()
    assert not result.lengths_advanced


def test_a_prompt_fills_the_cache_as_the_model_would(model: torch.nn.Module) -> None:
    prompt = prompt_tokens(lambda text: {"input_ids": [len(word) for word in text.split()]}, 2, 31, CPU)
    state = StepState.create(model, batch=2, capacity=64, prompt=prompt)
    state.fill(30)
    with torch.no_grad():
        expected = model(prompt).logits[:, -1]
    torch.testing.assert_close(run_eager(state, 30).logits, expected)
    tokens, elapsed_s = greedy_tokens(state.eager_step, state, 30, steps=3)
    assert torch.equal(tokens[:, 0], expected.argmax(-1))
    assert torch.equal(state.token, prompt[:, 30:31])
    assert elapsed_s > 0
    with pytest.raises(ShortPromptError):
        state.fill(31)


def test_a_sliding_window_cache_is_refused() -> None:
    config = MistralConfig(**SIZES, sliding_window=8)
    with pytest.raises(UnsupportedCacheError, match="StaticSlidingWindowLayer"):
        StepState.create(BenchModel("sliding", config).load(CPU, torch.float32), batch=1, capacity=64)


def test_whole_run_lists_failures_and_keeps_results() -> None:
    settings = Settings(
        cases=(Case(2, 64, 20), Case(2, 64, 30)),
        variants=(TRACED, Variant("broken", "no such backend", "sdpa")),
        rounds=Rounds(2, 3, 1),
        dtype=torch.float32,
        mode="default",
    )
    kept: list[int] = []

    def keep(so_far: RunResult) -> None:
        kept.append(len(so_far.cases))

    result = run(settings, CPU, say=lambda line: None, keep=keep, bench_model=TINY)
    assert kept == [2]
    for case in result.cases:
        traced, broken = case.variants
        assert traced.failure is None
        assert traced.times is not None
        assert len(traced.times.burst.samples_us) == 2
        assert traced.errors is not None
        assert traced.errors.cache_eager == 0
        assert "no such backend" in str(broken.failure)
    document = json.loads(json.dumps(result.to_dict()))
    assert document["cases"][0]["variants"][1]["failure"] == result.cases[0].variants[1].failure
    for table in e2e_tables(result):
        assert "2x64x20" in plain_text(table)
        show(table)


@pytest.mark.parametrize("shape", LAUNCH_SHAPES, ids=str)
def test_read_kernel_reads_every_word_once(shape: object) -> None:
    region = torch.randint(-1000, 1000, (2 * 32768,), dtype=torch.int32)
    sink = torch.full((64,), 7777, dtype=torch.int32)
    launch_read(region, sink, shape, sm_count=2)  # type: ignore[arg-type]
    programs = shape.programs(region.numel() // shape.block_words, 2)  # type: ignore[attr-defined]
    assert sink[:programs].sum() == region.sum()
    assert (sink[programs:] == 7777).all()


def test_a_failed_compile_process_says_why() -> None:
    job = CompileJob("no variant", "llama-8b", 1, "1x64x20", "default", "float32", "cpu")
    with pytest.raises(CompileJobError, match="no variant"):
        run_in_new_process(job)


def test_command_without_gpu_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    result = CliRunner().invoke(app, ["e2e"])
    assert result.exit_code == 2
    assert "GPU" in result.output


@pytest.mark.parametrize(("lowered", "exit_code"), [(1, 0), (0, 1)])
def test_command_writes_keeps_and_judges(
    lowered: int, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = CompileFacts(1.0, 1, 0, sites=1, lowered=lowered, reasons=("why not",))
    times, errors = StepTimes(*(Samples([1.0]) for _ in range(3))), Errors(0.1, 0.1, None, 0.1, True)
    ours = VariantResult(OURS, compiled=facts, times=times, errors=errors)
    case = CaseResult(Case(1, 64, 10), 1, StepBytes(1, 1, 1, 1), None, [ours], eager_float64_error=0.1)

    def measured(settings: Settings, device: torch.device, say: Say, keep: Keep) -> RunResult:
        result = RunResult(settings.to_dict(), describe_environment(CPU), [case])
        keep(result)
        return result

    monkeypatch.setattr("prefetch_compiler.bench.e2e.run", measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # Narrower than the table.
    monkeypatch.setenv("COLUMNS", "40")
    out = tmp_path / "raw.json"
    result = CliRunner().invoke(app, ["e2e", "--json", "--out", str(out)])
    assert result.exit_code == exit_code
    assert json.loads(result.stdout) == json.loads(out.read_text())
    assert ("why not" in result.stderr) == (exit_code == 1)
    assert "kvprefetch" in CliRunner().invoke(app, ["e2e"]).stdout


@pytest.mark.parametrize("arguments", [["--cases", "1x2"], ["--variants", "nobody"], ["--cases", "1x64x60"]])
def test_command_refuses_nonsense(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["e2e", *arguments])
    assert result.exit_code == 2
    assert result.output.startswith("error: ")


def test_dry_run_lists_bytes_without_a_gpu(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["e2e", "--dry-run", "--json", "--layers", "1", "--cases", "1x8192x1000"])
    assert result.exit_code == 0
    (listed,) = json.loads(result.output)
    assert listed["case"] == {"batch": 1, "capacity": 8192, "held": 1000}
    assert listed["bytes"]["kv_bytes"] == 1000 * 8 * 2 * 128 * 2
    assert CliRunner().invoke(app, ["e2e", "--dry-run", "--layers", "1"]).exit_code == 0
