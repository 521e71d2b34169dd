"""Contract of the recognisers: each golden graph is recognised as what it is, lowered, and computes what eager does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch.fx import Node

from prefetch_compiler.recognize import registry
from prefetch_compiler.recognize.site import Recogniser, Site
from prefetch_compiler.report import Verdict
from prefetch_compiler.spec import AttentionSpec

from .golden import (
    dequantised,
    evicted,
    flex,
    hand_written,
    latent,
    multi_head,
    paged,
    partial,
    products,
    sliding_window,
    speculation,
    three_dimensional,
)
from .golden.catalogue import GOLDEN_GRAPHS
from .golden.graph import Golden, Inputs
from .golden.run import assert_follows_eager, run_compiled, run_eagerly
from .uncompiled import graphs_run_uncompiled

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _device_independent(specs: Iterable[AttentionSpec | None]) -> list[AttentionSpec]:
    return [replace(spec, out_heads_first=True) for spec in specs if spec is not None]


@pytest.mark.parametrize("golden", GOLDEN_GRAPHS, ids=str)
def test_a_golden_graph_is_recognised_and_follows_eager(golden: Golden) -> None:
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    assert [site.verdict for site in report.sites] == [Verdict.HEURISTIC] * len(golden.specs), str(report)
    assert _device_independent(site.spec for site in report.sites) == _device_independent(golden.specs)
    assert_follows_eager(compiled, eager, problems)


_MODULES_WRITTEN_HERE = (
    dequantised, evicted, flex, hand_written, latent, multi_head, paged, partial, products, sliding_window, speculation,
    three_dimensional,
)  # fmt: skip
_WRITTEN_HERE = [golden for module in _MODULES_WRITTEN_HERE for golden in module.GOLDEN]
_FROM_MODELS = [golden for golden in GOLDEN_GRAPHS if golden not in _WRITTEN_HERE]
_BY_HAND = [
    golden
    for golden in hand_written.GOLDEN
    if golden.name in ("enable_gqa", "repeat_interleave", "stored_length_first", "bool-B.H.q.S", "min-B.1.q.S")
]
_SOME = ("matmul", "grouped_einsum", "grouped_matmul", "length_first", "bmm", "sink_less_maximum", "alibi")
_PRODUCTS = [golden for golden in products.GOLDEN if golden.name in _SOME]


_PARTIAL = [golden for golden in partial.GOLDEN if golden.name == "partial_by_lse"]
_FLEX = [golden for golden in flex.GOLDEN if golden.name == "flex_small_blocks"]

_DEQUANTISED = [
    golden for golden in dequantised.GOLDEN if golden.name in ("int8_written", "int8_value_channels", "e4m3_products")
]

_PAGED = [golden for golden in paged.GOLDEN if golden.name in ("paged_and_written", "paged_int8")]

_LATENT = [golden for golden in latent.GOLDEN if golden.name == "latent_by_writes"]

# Where even the hidden size is a symbol, as in this one, the strides of SDPA's output stay formulas.
_HIDDEN_SIZE_IS_AN_INPUT = ("whisper",)


_ANY_SIZE = [*_DEQUANTISED[:2], *_PAGED, evicted.LENGTHS_OF_HEADS]


@pytest.mark.parametrize("golden", [*_FROM_MODELS, *_BY_HAND, *_FLEX, *_ANY_SIZE], ids=str)
def test_a_golden_graph_with_every_size_dynamic_follows_eager(golden: Golden) -> None:
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden, dynamic=True)
    assert report.sites
    if golden.name in _HIDDEN_SIZE_IS_AN_INPUT:
        assert all("neither usual memory order" in site.reason for site in report.sites)
    else:
        assert len(report.lowered) == len(report.sites), str(report)
    assert_follows_eager(compiled, eager, problems)


@pytest.mark.parametrize("golden", _PRODUCTS, ids=str)
def test_products_of_any_batch_and_length_follow_eager(golden: Golden) -> None:
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(replace(golden, steps=lambda: _any_batch_and_length(golden.steps())))
    assert [site.spec.symbolic for site in report.lowered if site.spec] == [{"batch", "kv_len"}], str(report)
    assert_follows_eager(compiled, eager, problems)


def _any_batch_and_length(steps: Sequence[Inputs]) -> Sequence[Inputs]:
    """Tensors whose sizes torch.compile keeps symbolic where they are the batch or the number of keys."""
    for step in steps:
        for tensor in (value for value in step.values() if value is not None):
            for dim, size in enumerate(tensor.shape):
                if size in (products.BATCH, products.KV_LEN):
                    torch._dynamo.mark_dynamic(tensor, dim)
    return steps


_GENERATED = [
    *_FROM_MODELS, *_BY_HAND, *_PRODUCTS, *_PARTIAL, flex.EVERYTHING.golden, *_DEQUANTISED, *_PAGED, *_LATENT,
    evicted.LENGTHS_OF_HEADS,
]  # fmt: skip


@pytest.mark.parametrize("golden", _GENERATED, ids=str)
def test_a_golden_graph_through_inductors_code_follows_eager(golden: Golden) -> None:
    eager, problems = run_eagerly(golden)
    compiled, report = run_compiled(golden, options={"kvprefetch.strict": True})
    assert len(report.lowered) == len(report.sites) > 0
    assert_follows_eager(compiled, eager, problems)


@pytest.mark.parametrize("recogniser", registry.RECOGNISERS, ids=lambda recogniser: recogniser.__name__)
def test_every_recogniser_has_a_golden_graph(recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [golden for golden in GOLDEN_GRAPHS if golden.recogniser == recogniser.__name__]
    assert mine, f"add a golden graph for {recogniser.__name__} under tests/contract/golden"
    found: list[Site] = []

    def spy(node: Node) -> Site | None:
        site = recogniser(node)
        if site is not None:
            found.append(site)
        return site

    monkeypatch.setattr(registry, "RECOGNISERS", tuple(spy if r is recogniser else r for r in registry.RECOGNISERS))
    with graphs_run_uncompiled():
        run_compiled(mine[0])
    assert len(found) == len(mine[0].specs)
