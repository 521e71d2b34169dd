"""Decode steps of architectures, on tiny ones on the CPU, with backends that need no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from prefetch_compiler.bench.architectures import measure as measuring
from prefetch_compiler.bench.architectures.catalogue import CATALOGUE, LAYERS, Architecture, find_architectures
from prefetch_compiler.bench.architectures.measure import ArchitectureResult, measure
from prefetch_compiler.bench.architectures.state import WindowedState
from prefetch_compiler.bench.architectures.table import faster, table_of
from prefetch_compiler.bench.case import Case
from prefetch_compiler.bench.cli import app
from prefetch_compiler.bench.errors import AttentionNotSetError, UnknownArchitectureError
from prefetch_compiler.bench.guard import problems
from prefetch_compiler.bench.rounds import Rounds
from prefetch_compiler.bench.samples import Samples
from prefetch_compiler.bench.step import DecodeStep, fresh_compiler
from prefetch_compiler.bench.timing import StepTimes
from prefetch_compiler.bench.variant import Variant
from prefetch_compiler.tuning.presets import PRESETS

CPU = torch.device("cpu")
CASE = Case(2, 48, 20)
WINDOW = 16
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": WINDOW,
}
# The eager backend in the place of Inductor and of ours.
TRACED = (Variant("inductor", "eager", "sdpa"), Variant("kvprefetch", "eager", "sdpa"))


def tiny(name: str) -> Architecture:
    (architecture,) = find_architectures(name)
    return replace(
        architecture, settings={key: TINY.get(key, value) for key, value in architecture.settings.items()} | TINY
    )


@pytest.fixture(autouse=True)
def _one_compiler_per_test() -> Iterator[None]:
    with fresh_compiler():
        yield


@pytest.fixture(scope="module")
def windowed_model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny("Gemma-3-12B").config(), attn_implementation="sdpa").eval()


@pytest.mark.parametrize("architecture", CATALOGUE, ids=lambda architecture: architecture.name)
def test_each_is_two_layers_of_transformers(architecture: Architecture) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture.config(), attn_implementation=architecture.attention)
    assert model.config.get_text_config(decoder=True).num_hidden_layers == LAYERS


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("Llama-3-8B", "llama-3-8b"), ("Qwen2.5-7B", "qwen2.5-7b"), ("Gemma-3-12B", "gemma-3-12b"),
        ("Phi-3-mini", "phi-3-mini-128k"), ("GPT-2 XL", "gpt2-xl"),
    ],
)  # fmt: skip
def test_heads_are_those_of_the_presets(name: str, preset: str) -> None:
    (architecture,) = find_architectures(name)
    config, known = architecture.config(), PRESETS[preset]
    heads = config.num_attention_heads
    assert heads == known.query_heads
    assert (getattr(config, "num_key_value_heads", None) or heads) == known.kv_heads
    assert (getattr(config, "head_dim", None) or config.hidden_size // heads) == known.head_dim
    assert known.window in (None, getattr(config, "sliding_window", None))


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"'Lama'.*Llama-3-8B"):
        find_architectures("Qwen3-8B, Lama")
    assert [one.name for one in find_architectures(" qwen3-8b ,GPT-2 XL")] == ["Qwen3-8B", "GPT-2 XL"]
    assert find_architectures("") == CATALOGUE


def test_steps_begin_at_the_length_that_was_set(windowed_model: Any) -> None:
    """What a window has seen is a number in Python: it would be another graph's at every step."""
    state = WindowedState.of(tiny("Gemma-3-12B"), windowed_model, CASE)
    state.fill(CASE.held)
    windowed, whole = state.cache.layers
    assert (windowed.max_cache_len, whole.max_cache_len) == (WINDOW, CASE.capacity)
    for step in range(3):
        state.eager_step()
        assert state.lengths() == [CASE.held + 1, CASE.held + 1 + step]
    state.set_length(CASE.held - 5)
    state.eager_step()
    assert state.lengths() == [CASE.held + 1, CASE.held - 4]


def test_the_state_in_float64_is_the_same_state(windowed_model: Any) -> None:
    state = WindowedState.of(tiny("Gemma-3-12B"), windowed_model, CASE)
    state.fill(CASE.held)
    single = state.eager_step()
    state.fill(CASE.held)
    with torch.no_grad():
        double = state.in_float64(windowed_model.double()).eager_step()
    windowed_model.float()
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_an_attention_that_cannot_be_set_is_an_error() -> None:
    model = AutoModelForCausalLM.from_config(
        replace(
            tiny("Falcon-7B"), settings={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        ).config(),
        attn_implementation="sdpa",
    )
    state = WindowedState.of(tiny("Falcon-7B"), model, CASE)
    with pytest.raises(AttentionNotSetError, match="FalconForCausalLM keeps attn_implementation='sdpa'"):
        DecodeStep(Variant("inductor+flex", "eager", "flex_attention"), state, "default").select()


@pytest.fixture(scope="module")
def measured() -> Iterator[ArchitectureResult]:
    broken = Variant("inductor+flex", "no such backend", "sdpa")
    with pytest.MonkeyPatch.context() as patch, fresh_compiler():
        patch.setattr(measuring, "variants_of", lambda _: (*TRACED, broken))
        yield measure(tiny("Gemma-3-12B"), CASE, Rounds(2, 2, 1), "default", CPU, lambda _: None)


def test_variants_are_checked_and_timed(measured: ArchitectureResult) -> None:
    for result in measured.outcome.variants[:2]:
        assert result.times is not None
        assert len(result.times.burst.samples_us) == 2
        assert result.errors is not None
        assert result.errors.lengths_advanced
        assert (result.errors.logits_eager, result.errors.cache_eager) == (0.0, 0.0)  # they are eager
        assert result.errors.logits_float64 == measured.outcome.eager_float64_error
    assert 0 < measured.outcome.eager_float64_error < 0.1  # bfloat16


def test_a_variant_that_fails_is_listed_and_takes_no_other_along(measured: ArchitectureResult) -> None:
    failed = measured.outcome.variants[2]
    assert failed.failure is not None
    assert "no such backend" in failed.failure
    assert measured.step_us("inductor+flex") is None
    assert any("no such backend" in note for note in table_of([measured]).notes)


def test_a_layer_that_is_not_lowered_is_wrong(measured: ArchitectureResult) -> None:
    traced = measured.outcome.variants[1]
    facts = replace(traced.compiled, sites=LAYERS, lowered=1, reasons=("why not",)) if traced.compiled else None
    ours = replace(traced, variant=Variant("kvprefetch", "kvprefetch", "sdpa"), compiled=facts)
    found = problems(replace(measured.outcome, variants=[ours]))
    assert found == [f"case {CASE}: 1 of {LAYERS} layers' attention lowered: why not"]


def test_ratios_are_the_peers_time_over_ours(measured: ArchitectureResult) -> None:
    results = []
    for peer_us in (200.0, 800.0):
        variants = [replace(one) for one in measured.outcome.variants]
        for variant, us in zip(variants, (peer_us, 100.0), strict=False):
            variant.times = StepTimes(burst=Samples([us]))
        results.append(ArchitectureResult(measured.architecture, replace(measured.outcome, variants=variants)))
    assert [faster(one, "inductor") for one in results] == [2.0, 8.0]
    assert faster(results[0], "inductor+flex") is None
    assert "over inductor: 4.00x in the geometric mean of 2, 2.00x the least" in table_of(results).notes


def test_results_are_plain_data(measured: ArchitectureResult) -> None:
    plain = json.loads(json.dumps(measured.to_dict()))
    assert (plain["architecture"], plain["attention"], plain["layers"]) == ("Gemma-3-12B", "sdpa", LAYERS)
    assert [one["variant"] for one in plain["variants"]] == ["inductor", "kvprefetch", "inductor+flex"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--names", "Lama"], "no architecture is called 'Lama'"), (["--case", "16x64x60"], "take a larger capacity")],
)
def test_what_cannot_be_measured_is_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["architectures", *options])
    assert result.exit_code == 2
    assert message in result.output


def test_a_dry_run_lists_them() -> None:
    result = CliRunner().invoke(app, ["architectures", "--dry-run"])
    assert result.exit_code == 0
    assert all(architecture.name in result.output for architecture in CATALOGUE)
