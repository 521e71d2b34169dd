"""A graph that was lowered is not kept alive: what the pass remembers of it goes with it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch.fx import Graph

from prefetch_compiler.lower.rewrite import Lowering

from .golden import flex, products
from .golden.graph import Golden
from .golden.run import run_compiled
from .uncompiled import graphs_run_uncompiled

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

GOLDEN = [next(one for one in products.GOLDEN if one.name == "ten_thousand"), *flex.GOLDEN[1:3]]


@pytest.mark.parametrize("golden", GOLDEN, ids=str)
def test_a_lowered_graph_is_let_go(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Graph]] = []
    run: Callable[[Lowering, Graph], None] = Lowering.run

    def watched(self: Lowering, graph: Graph) -> None:
        run(self, graph)
        if "_kvprefetch" in graph.__dict__:
            seen.append(weakref.ref(graph))

    monkeypatch.setattr(Lowering, "run", watched)
    with graphs_run_uncompiled() as graphs:
        _, report = run_compiled(golden)
        graphs.clear()
    assert report.lowered
    torch._dynamo.reset()
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)
    assert seen
