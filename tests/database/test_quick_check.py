"""The quick check of a stale record: a small problem of the same kind, passed by what is right alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from prefetch_compiler.config import KernelConfig, Merge, OperandOrder
from prefetch_compiler.database.key import Feature, key_of
from prefetch_compiler.lower import quick_check
from prefetch_compiler.lower.quick_check import MAX_CACHE_BYTES, MAX_SCORES, small, why_wrong
from prefetch_compiler.spec import AttentionSpec, MaskKind

from ..contract.representative_specs import INT8, TOKEN, quantised, site
from .examples import configs
from .specs import specs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = KernelConfig(32, 3, 4, 2, merge=Merge.INPLACE)
BOOL, ADDITIVE, NONE, LENGTHS = MaskKind.BOOL, MaskKind.ADDITIVE, MaskKind.NONE, MaskKind.LENGTHS


SPECS = {
    "grouped": site(6, 2, 16, kv_len=100, batch=5),
    "additive, values narrower": site(4, 4, 32, value_dim=16, kv_len=70, q_len=3, mask=ADDITIVE, mask_per_row=True),
    "rows not aligned": site(2, 2, 8, kv_len=90, row_padding=1, mask=NONE),
    "causal": site(2, 1, 16, kv_len=90, q_len=4, mask=NONE, is_causal=True),
    "one key": site(2, 1, 16, kv_len=1, mask=BOOL),
    "float32": site(4, 2, 24, kv_len=64, dtype=torch.float32),
    "capped, with sinks": site(6, 2, 16, kv_len=100, batch=5, softcap=50.0, sink=True),
    "pages, capped, with sinks": site(
        4, 2, 16, kv_len=96, batch=5, mask=LENGTHS, page_size=32, softcap=50.0, sink=True
    ),
}


@pytest.fixture(autouse=True)
def _afresh() -> None:
    why_wrong.cache_clear()


@pytest.mark.parametrize("name", SPECS)
def test_what_is_right_passes(name: str) -> None:
    assert why_wrong(SPECS[name], CONFIG, DEVICE) is None


def test_over_quantised_pages_too() -> None:
    spec = quantised(SPECS["pages, capped, with sinks"], INT8, TOKEN)
    config = KernelConfig(32, 3, 2, 2, operand_order=OperandOrder.KQ)
    assert why_wrong(spec, config, DEVICE) is None


def _one_output_off(out: Tensor) -> Tensor:
    out[0, 0, 0, 0] += out.abs().max() / 16
    return out


def _not_a_number(out: Tensor) -> Tensor:
    out[-1, -1, -1, -1] = torch.nan
    return out


def _raises(out: Tensor) -> Tensor:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("spoil", [_one_output_off, _not_a_number, torch.zeros_like, _raises])
def test_what_is_wrong_does_not(spoil: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    launch = quick_check.launch_decode
    monkeypatch.setattr(quick_check, "launch_decode", lambda *args, **kwargs: spoil(launch(*args, **kwargs)))
    reason = why_wrong(SPECS["grouped"], CONFIG, DEVICE)
    assert reason is not None
    assert reason.startswith("the quick check ")


@pytest.mark.parametrize("name", ["grouped", "additive, values narrower"])
def test_a_dropped_mask_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = quick_check.launch_decode

    def without_mask(q: Tensor, k: Tensor, v: Tensor, mask: Any, bounds: Any, **kwargs: Any) -> Tensor:
        return launch(q, k, v, None, None, **kwargs)

    monkeypatch.setattr(quick_check, "launch_decode", without_mask)
    assert why_wrong(SPECS[name], CONFIG, DEVICE) is not None


@pytest.mark.parametrize("left_out", ["softcap", "sink"])
def test_a_dropped_soft_cap_or_sink_is_found(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = quick_check.launch_decode
    monkeypatch.setattr(
        quick_check, "launch_decode", lambda *args, **kwargs: launch(*args, **{**kwargs, left_out: None})
    )
    assert why_wrong(SPECS["capped, with sinks"], CONFIG, DEVICE) is not None


def test_no_random_state_is_touched() -> None:
    before = torch.random.get_rng_state()
    why_wrong(SPECS["grouped"], CONFIG, DEVICE)
    assert torch.equal(torch.random.get_rng_state(), before)


@settings(max_examples=500, deadline=None)
@given(specs(), configs)
def test_the_problem_is_of_the_same_kind_and_small(spec: AttentionSpec, config: KernelConfig) -> None:
    problem = small(spec, config)
    assert problem.batch <= 2
    assert problem.kv_len <= spec.kv_len
    kept = ("query_heads", "kv_heads", "head_dim", "value_dim", "q_len", "dtype", "scale", "mask", "mask_dtype")
    kept += ("mask_per_row", "is_causal", "out_heads_first", "page_size", "sink")
    assert [getattr(problem, name) for name in kept] == [getattr(spec, name) for name in kept]
    of_spec, of_problem = key_of(spec), key_of(problem)
    assert (of_problem.layout, of_problem.alignment) == (of_spec.layout, of_spec.alignment)
    assert Feature.GROWING not in of_problem.features
    if problem.kv_len > (problem.page_size or 1):
        assert problem.capacity_bytes <= MAX_CACHE_BYTES
        assert problem.batch * problem.query_heads * problem.q_len * problem.kv_len <= MAX_SCORES
