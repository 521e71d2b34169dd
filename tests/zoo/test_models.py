"""Whole models: twenty compiled decode steps of a left-padded batch follow eager, logits, tokens and caches alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from prefetch_compiler.report import Report, collect_reports

from ..contract.uncompiled import graphs_run_uncompiled
from .decode import Decoded, cached_tensors, decode
from .models import LLAMA, ZOO, ZooModel

CACHES = ("static", "dynamic")

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@cache
def _eager_and_exact(zoo_model: ZooModel, cache: str, dtype: torch.dtype = torch.float32) -> tuple[Decoded, Decoded]:
    """Eager's run, and the same run in float64 on eager's tokens."""
    eager = decode(zoo_model, cache, dtype=dtype)
    return eager, decode(zoo_model, cache, dtype=torch.float64, forced=eager.tokens)


def _error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square."""
    return float((actual.double() - exact.double()).square().mean().sqrt())


def _assert_follows(compiled: Decoded, eager: Decoded, exact: Decoded) -> None:
    """Compiled code rounds as often as eager does, elsewhere. Over thousands of values the mean error of either is the
    same but for chance and fusion: twice eager's own is allowed."""
    assert _error(compiled.logits, exact.logits) <= 2 * _error(eager.logits, exact.logits)
    tensors = [cached_tensors(run.cache) for run in (compiled, eager, exact)]
    for ours, theirs, reference in zip(*tensors, strict=True):
        assert ours.shape == theirs.shape
        assert _error(ours, reference) <= 2 * _error(theirs, reference)


def _compile(**options: Any) -> Any:
    return lambda model: torch.compile(model, backend="kvprefetch", **options)


@dataclass(frozen=True)
class Compiled:
    """A compiled run, what became of its sites, and how many graphs Dynamo captured for it."""

    run: Decoded
    report: Report
    graphs: int


@cache
def _compiled(zoo_model: ZooModel, cache: str, backend: str = "kvprefetch") -> Compiled:
    torch._dynamo.reset()
    counters.clear()
    with graphs_run_uncompiled(), collect_reports() as report:
        run = decode(zoo_model, cache, lambda model: torch.compile(model, backend=backend))
    return Compiled(run, report, counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("zoo_model", ZOO, ids=str)
def test_decoding_follows_eager_with_every_site_lowered(zoo_model: ZooModel, cache: str) -> None:
    eager, exact = _eager_and_exact(zoo_model, cache)
    compiled = _compiled(zoo_model, cache)
    _assert_follows(compiled.run, eager, exact)
    assert torch.equal(compiled.run.tokens, eager.tokens)
    report = compiled.report
    assert len(report.lowered) == len(report.sites) == zoo_model.sites * report.graphs, str(report)


@pytest.mark.parametrize("zoo_model", ZOO, ids=str)
def test_a_growing_cache_compiles_no_more_often_than_with_inductor(zoo_model: ZooModel) -> None:
    ours, inductors = _compiled(zoo_model, "dynamic"), _compiled(zoo_model, "dynamic", "inductor")
    assert 0 < ours.graphs <= inductors.graphs


@pytest.mark.parametrize("cache", CACHES)
def test_decoding_through_inductors_code_follows_eager(cache: str) -> None:
    eager, exact = _eager_and_exact(LLAMA, cache)
    with collect_reports() as report:
        compiled = decode(LLAMA, cache, _compile(options={"kvprefetch.strict": True}))
    _assert_follows(compiled, eager, exact)
    assert torch.equal(compiled.tokens, eager.tokens)
    assert len(report.lowered) == LLAMA.sites * report.graphs


@pytest.mark.gpu
@pytest.mark.parametrize("zoo_model", ZOO, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_decoding_under_cuda_graphs_follows_eager(zoo_model: ZooModel, dtype: torch.dtype) -> None:
    eager, exact = _eager_and_exact(zoo_model, "static", dtype)
    with collect_reports() as report:
        compiled = decode(zoo_model, "static", _compile(mode="reduce-overhead"), dtype=dtype, forced=eager.tokens)
    _assert_follows(compiled, eager, exact)
    assert len(report.lowered) == zoo_model.sites * report.graphs
