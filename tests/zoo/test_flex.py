"""A whole model with ``attn_implementation="flex_attention"``: compiled decode steps follow eager, caches too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as flex
from transformers import masking_utils
from transformers.integrations import flex_attention as integration

from prefetch_compiler.report import collect_reports

from ..contract.uncompiled import graphs_run_uncompiled
from . import decode as decoding
from .decode import cached_tensors, decode
from .models import LLAMA, ZooModel, build

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

STEPS = 3


def _with_flex(zoo_model: ZooModel, dtype: torch.dtype, device: torch.device) -> Any:
    model = build(zoo_model, dtype, device)
    model.set_attn_implementation("flex_attention")
    return model


@pytest.fixture(autouse=True)
def _flex_without_a_compiler_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Outside of our backend transformers compiles flex attention and block masks with Inductor, whose code for the
    CPU does not always compile."""

    def create_block_mask(*args: Any, **kwargs: Any) -> Any:
        return flex.create_block_mask(*args, **{**kwargs, "_compile": False})

    monkeypatch.setattr(masking_utils, "create_block_mask", create_block_mask)
    monkeypatch.setattr(integration.WrappedFlexAttention, "__call__", lambda self: flex.flex_attention)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(decoding, "build", _with_flex)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_decoding_with_flex_attention_follows_eager() -> None:
    eager = decode(LLAMA, "static", steps=STEPS)
    exact = decode(LLAMA, "static", dtype=torch.float64, forced=eager.tokens, steps=STEPS)
    torch._dynamo.reset()
    with graphs_run_uncompiled(), collect_reports() as report:
        compiled = decode(LLAMA, "static", lambda model: torch.compile(model, backend="kvprefetch"), steps=STEPS)
    assert len(report.sites) > 0
    assert all(site.form == "flex" for site in report.sites)
    assert len(report.lowered) == len(report.sites), str(report)
    assert torch.equal(compiled.tokens, eager.tokens)
    runs = [[run.logits, *cached_tensors(run.cache)] for run in (compiled, eager, exact)]
    for ours, theirs, reference in zip(*runs, strict=True):
        assert _error(ours, reference) <= 2 * _error(theirs, reference)


def _error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square."""
    return float((actual.double() - exact.double()).square().mean().sqrt())
