"""``bench numerics``: the kernels pass it, and kernels with a mistake of any size that matters do not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter
from typer.testing import CliRunner

from prefetch_compiler.bench.cli import app
from prefetch_compiler.bench.numerics.cli import table_of
from prefetch_compiler.bench.numerics.group import GPU_SIZES, GROUPS, INTERPRETER_SIZES, runnable
from prefetch_compiler.bench.numerics.measure import measure
from prefetch_compiler.bench.numerics.problem import edge_lengths
from prefetch_compiler.bench.numerics.result import GroupResult, NumericsResult, _at_percentiles
from prefetch_compiler.config import KernelConfig, LoadPath
from prefetch_compiler.device import REFERENCE_DEVICES, profile
from prefetch_compiler.lower.launch import launch_decode

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = GPU_SIZES if torch.cuda.is_available() else INTERPRETER_SIZES
SAMPLE = ("float16", "splits, merged after", "additive mask", "pages", "int8, scales of tokens", "uint4", "pointers")
Launch = Callable[..., Tensor]


def measured(features: tuple[str, ...], cases_each: int, launch: Launch = launch_decode) -> NumericsResult:
    groups = tuple(group for group in GROUPS if group.feature in features)
    with torch.no_grad():
        return measure(
            groups, SIZES, cases_each * len(groups), 0, DEVICE, profile(DEVICE), lambda line: None, launch
        )  # fmt: skip


def test_kernels_err_no_more_than_pytorch() -> None:
    result = measured(SAMPLE, 3)
    assert [group.feature for group in result.groups if group.skipped_because] == []
    assert result.cases == 3 * len(result.groups) == 24
    assert {group.template for group in result.groups} == {"split_kv_decode", "quantised_decode", "latent_decode"}
    assert result.wrong == ()


def one_addition_after_another(builder: Any, a: Any, b: Any, sums: Any, *_: Any) -> Any:
    """A product of two tiles in float32 as a GPU without tensor cores for it has it, where NumPy keeps several sums.
    float64 holds a product of two float32 exactly, and nearly always its sum with another: one rounding, as by fma."""
    total = sums.data
    for column in range(a.data.shape[1]):
        product = a.data[:, column : column + 1].astype(np.float64) * b.data[column : column + 1].astype(np.float64)
        total = (product + total).astype(np.float32)
    return interpreter.TensorHandle(total, sums.dtype.scalar)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of Triton's interpreter")
def test_float32_errs_no_more_than_pytorch_where_products_are_added_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the columns and keys of GPU cases: in one chain of 128 columns it errs up to three times as much."""
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", one_addition_after_another)
    (group,) = (group for group in GROUPS if group.feature == "float32")
    with torch.no_grad():
        result = measure((group,), GPU_SIZES, 24, 0, DEVICE, profile(DEVICE), lambda line: None)
    assert result.wrong == ()


def loses_the_last_key(*given: Any, lengths: Tensor, **named: Any) -> Tensor:
    return launch_decode(*given, lengths=(lengths - 1).clamp(min=0), **named)


def reads_one_key_too_many(*given: Any, lengths: Tensor, **named: Any) -> Tensor:
    return launch_decode(*given, lengths=(lengths + 1).clamp(max=given[1].shape[2]), **named)


def rounds_values_to_three_bits(q: Tensor, k: Tensor, v: Tensor, *given: Any, **named: Any) -> Tensor:
    """e4m3 keeps three of a mantissa."""
    return launch_decode(q, k, (v.float() / 8).to(torch.float8_e4m3fn).float().to(v.dtype) * 8, *given, **named)


def scales_by_a_little_more(*given: Any, scale: float, **named: Any) -> Tensor:
    return launch_decode(*given, scale=scale * 1.01, **named)


def leaves_empty_rows_unwritten(*given: Any, lengths: Tensor, **named: Any) -> Tensor:
    out = launch_decode(*given, lengths=lengths, **named)
    return out.masked_fill((lengths == 0)[:, None, None, None], math.nan)


@pytest.mark.parametrize(
    "bug",
    [
        loses_the_last_key,
        reads_one_key_too_many,
        rounds_values_to_three_bits,
        scales_by_a_little_more,
        leaves_empty_rows_unwritten,
    ],
)
def test_a_kernel_with_a_mistake_fails(bug: Launch) -> None:
    (wrong,) = measured(("float16",), 13, bug).wrong
    assert wrong.share > 1


def test_percentiles_are_of_the_cases() -> None:
    assert _at_percentiles(torch.arange(1, 101).double()) == (50, 90, 99, 100)
    assert _at_percentiles(torch.tensor([3.0]).double()) == (3, 3, 3, 3)


def group(kernel: tuple[float, ...], reference: tuple[float, ...], **more: Any) -> GroupResult:
    return GroupResult("template", "feature", "b16", 10, kernel, reference, **more)


@pytest.mark.parametrize(
    ("kernel", "reference", "share"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1), 1 / 1.5),
        ((0, 0, 0, 4.5), (2, 2, 2, 2), 1.5),
        ((2, 2, 3, 3), (1, 4, 4, 4), 2 / 1.5),
        ((1.2, 1.2, 1.2, 1.2), (0, 0, 0, 0), 0.8),
    ],
)
def test_a_kernel_may_err_by_half_more_at_every_percentile(
    kernel: tuple[float, ...], reference: tuple[float, ...], share: float
) -> None:
    found = group(kernel, reference)
    assert found.share == pytest.approx(share)
    assert found.right is (share <= 1)


def test_what_is_not_finite_is_wrong_whatever_the_rest() -> None:
    broken = group((0, 0, 0, 0), (1, 1, 1, 1), broken=1)
    assert not broken.right
    assert NumericsResult((broken,), 0).wrong == (broken,)


def test_lengths_are_at_every_edge() -> None:
    edges = edge_lengths(KernelConfig(16, 3, 4, 2), 80)
    assert {0, 1, 15, 16, 17, 63, 64, 65, 79, 80, 26, 27, 28, 53, 54, 55} <= set(edges)
    assert max(edges) == 80


def test_every_load_path_is_measured_on_sm90() -> None:
    chosen = [runnable(one, GPU_SIZES, 300, REFERENCE_DEVICES[90]) for one in GROUPS]
    assert [one for one in chosen if isinstance(one, str)] == []
    paths = {(bool(spec.rope_dim), config.load_path) for spec, config in chosen}  # type: ignore[misc]
    assert paths == {
        (False, LoadPath.POINTER), (False, LoadPath.TMA), (True, LoadPath.POINTER), (True, LoadPath.TMA),
        (True, LoadPath.PRODUCER),
    }  # fmt: skip


def test_the_command_says_how_it_went() -> None:
    runner = CliRunner()
    right = runner.invoke(app, ["numerics", "--only", "float16, splits", "--cases", "2", "--json"])
    assert right.exit_code == 2
    assert "no group's name has" in right.output
    right = runner.invoke(app, ["numerics", "--only", "split_kv_decode: float16", "--cases", "2", "--json"])
    assert right.exit_code == 0, right.output
    found = json.loads(right.stdout)
    assert found["right"] is True
    assert found["cases"] == 2
    assert found["groups"][0]["kernel"].keys() == {"50", "90", "99", "100"}


def test_the_table_has_both_errors() -> None:
    table = table_of(NumericsResult((group((1, 2, 3, 4), (5, 6, 7, 8)),), 0))
    assert table.rows[0][3:7] == ("1.00 / 5.00", "2.00 / 6.00", "3.00 / 7.00", "4.00 / 8.00")
