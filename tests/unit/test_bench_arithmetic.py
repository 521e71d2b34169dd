"""What the benchmark counts and computes, by hand on small numbers: cases, bytes, floors, ratios, quantiles."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig

from prefetch_compiler.bench.case import RANDOM_MODEL_CASES, Case, by_shape, parse_cases
from prefetch_compiler.bench.ceiling import L2_MULTIPLE, REGION_QUANTUM_BYTES, region_layout
from prefetch_compiler.bench.check import Errors, upper_quartile_error
from prefetch_compiler.bench.errors import NoRoomError
from prefetch_compiler.bench.floor import StepBytes, floor_us, step_bytes
from prefetch_compiler.bench.guard import problems
from prefetch_compiler.bench.kernels import summarize
from prefetch_compiler.bench.model import BenchModel, find_bench_model
from prefetch_compiler.bench.result import CaseResult, CompileFacts, VariantResult
from prefetch_compiler.bench.rounds import Rounds
from prefetch_compiler.bench.samples import Samples
from prefetch_compiler.bench.settings import Settings
from prefetch_compiler.bench.timing import StepTimes
from prefetch_compiler.bench.variant import BASELINE, FLEX, OURS, parse_variants
from prefetch_compiler.errors import InvalidOptionError

BF16 = torch.bfloat16


def test_case_spelling_is_reversible() -> None:
    assert Case.parse("16x4096x1000") == Case(16, 4096, 1000)
    assert parse_cases(",".join(map(str, RANDOM_MODEL_CASES))) == RANDOM_MODEL_CASES


@pytest.mark.parametrize("text", ["", "1x2", "1x10x10", "0x10x5", "1x10x0", "axbxc"])
def test_malformed_case_is_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="cases"):
        Case.parse(text)


def test_cases_of_one_shape_share_a_group() -> None:
    assert by_shape((Case(2, 64, 9), Case(1, 64, 9), Case(2, 64, 5))) == [
        [Case(1, 64, 9)],
        [Case(2, 64, 5), Case(2, 64, 9)],
    ]


def test_variants_by_name() -> None:
    assert parse_variants("kvprefetch, inductor+sdpa") == (OURS, BASELINE)
    with pytest.raises(InvalidOptionError, match="one of"):
        parse_variants("eager")


def test_bytes_of_llama_8b_shapes() -> None:
    size = step_bytes(find_bench_model("llama-8b", layers=8).on_meta(BF16), Case(16, 4096, 1000))
    layer = 4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336 + 2 * 4096
    table = 32000 * 4096
    assert size.parameter_bytes == 2 * (8 * layer + 4096 + 2 * table)
    assert size.weight_bytes == size.parameter_bytes - 2 * (table - 16 * 4096)
    assert size.kv_bytes == 16 * 1000 * 8 * (8 * 2 * 128 * 2)
    assert size.capacity_bytes == size.kv_bytes // 1000 * 4096


def test_a_shared_embedding_table_is_read() -> None:
    config = LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, tie_word_embeddings=True)
    size = step_bytes(BenchModel("tied", config).on_meta(BF16), Case(2, 64, 10))
    assert size.weight_bytes == size.parameter_bytes


def test_floor() -> None:
    assert floor_us(4_000_000, bytes_per_us=4e6) == 1.0


def test_ceiling_regions_exceed_l2_and_fit_memory() -> None:
    region, regions = region_layout(1 << 20, l2_bytes=60 << 20, free_bytes=1 << 40)
    assert region >= 1 << 20
    assert region % REGION_QUANTUM_BYTES == 0
    assert region * regions >= L2_MULTIPLE * (60 << 20)
    assert region_layout(8 << 30, l2_bytes=60 << 20, free_bytes=1 << 40)[1] == 1
    region, regions = region_layout(8 << 30, l2_bytes=60 << 20, free_bytes=1 << 30)
    assert region * regions < 1 << 30


def test_rounds_centre_on_the_fill_level() -> None:
    plan = Rounds(rounds=1, burst_steps=20, synchronous_steps=5)
    assert (plan.first_length(1000), plan.last_length(1000)) == (990, 1010)


def test_a_case_without_room_for_its_steps_is_refused() -> None:
    with pytest.raises(NoRoomError, match="1x64x60"):
        Settings(cases=(Case(1, 64, 60),)).chosen_cases()


def test_kernel_times_are_grouped_and_overlap_counts_once() -> None:
    profile = summarize([("a", 0.0, 4.0), ("b", 2.0, 6.0), ("a", 8.0, 10.0)], steps=2)
    assert [(kernel.name, kernel.launches, kernel.total_us) for kernel in profile.kernels] == [
        ("a", 1.0, 3.0),
        ("b", 0.5, 2.0),
    ]
    assert (profile.busy_us, profile.span_us, profile.total_us) == (4.0, 5.0, 5.0)
    assert "a" in str(profile)


def test_quantiles() -> None:
    samples = Samples([float(value) for value in range(11)])
    assert (samples.median_us, samples.quantile_us(0.2), samples.quantile_us(0.8)) == (5.0, 2.0, 8.0)


def test_ratios_compare_medians_of_one_case() -> None:
    result = case_result(ours_us=[5.0, 4.0, 6.0], inductor_us=[20.0])
    assert result.speedup(OURS) == 4.0
    assert result.speedup(BASELINE) == 1.0
    assert result.speedup(FLEX) is None
    assert result.over_floor(OURS, 2.5) == 2.0
    assert result.over_floor(OURS, None) is None


def test_guard_is_silent_on_a_good_result() -> None:
    assert problems(case_result()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lowered": 1}, "1 of 2 layers' attention lowered: why not"),
        ({"cache_eager": math.nan}, "not written"),
        ({"logits_eager": math.inf}, "not finite"),
        ({"logits_float64": 0.03}, "against float64"),
        ({"lengths_advanced": False}, "grow by one"),
        ({"failure": "OutOfMemoryError: no"}, "failed: OutOfMemoryError"),
    ],
)
def test_guard_names_what_is_wrong(change: dict[str, float | str | bool], words: str) -> None:
    (line,) = problems(case_result(**change))
    assert words in line


def case_result(
    ours_us: list[float] | None = None,
    inductor_us: list[float] | None = None,
    lowered: int = 2,
    failure: str | None = None,
    **errors: float | bool,
) -> CaseResult:
    good = {"logits_float64": 0.01, "logits_eager": 0.01, "logits_inductor": 0.01, "cache_eager": 0.001}
    ours = VariantResult(
        OURS,
        failure=failure,
        compiled=CompileFacts(1.0, 1, 0, sites=2, lowered=lowered, reasons=("why not",)),
        times=StepTimes(burst=Samples(ours_us or [1.0])),
        errors=Errors(**{**good, "lengths_advanced": True, **errors}),  # type: ignore[arg-type]
    )
    inductor = VariantResult(BASELINE, times=StepTimes(burst=Samples(inductor_us or [1.0])))
    return CaseResult(Case(1, 64, 10), 2, StepBytes(1, 1, 1, 1), None, [inductor, ours], eager_float64_error=0.01)


def test_the_error_of_a_routed_model_is_that_of_most_sequences() -> None:
    exact = torch.ones(4, 8)
    one_routed_otherwise = exact * torch.tensor([1.5, 1.01, 1.0, 1.0])[:, None]
    assert upper_quartile_error(one_routed_otherwise, exact) < 0.2
    assert upper_quartile_error(exact * 1.01, exact) == pytest.approx(0.01, rel=1e-4)
    assert upper_quartile_error(exact * torch.tensor([1.5, 1.5, 1.0, 1.0])[:, None], exact) > 0.2
