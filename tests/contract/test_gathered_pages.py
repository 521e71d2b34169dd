"""Where pages are not read as they lie: the site is lowered all the same, over what the graph gathers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefetch_compiler.lower import ops
from prefetch_compiler.spec import AttentionSpec

from .golden.graph import Golden
from .golden.paged import Paged
from .golden.run import assert_follows_eager, run_compiled, run_eagerly
from .uncompiled import graphs_run_uncompiled

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def _spec_of(golden: Golden) -> AttentionSpec:
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    (site,) = report.lowered
    assert_follows_eager(compiled, eager, problems)
    assert site.spec is not None
    return site.spec


def pages_in_turn(pool: Tensor, table: Tensor) -> Tensor:
    """A sequence's keys: the first of every page, then the second of every page."""
    return pool[table].transpose(1, 2).flatten(1, 2).transpose(1, 2)


def sequences_last(pool: Tensor, table: Tensor) -> Tensor:
    """Keys of page and sequence swapped: a batch of other sequences."""
    return pool[table.t().reshape(table.shape)].flatten(1, 2).transpose(1, 2)


def half_of_each_page(pool: Tensor, table: Tensor) -> Tensor:
    found = pool[table][:, :, :2]
    return torch.cat([found, found], 2).flatten(1, 2).transpose(1, 2)


def two_indices(pool: Tensor, table: Tensor) -> Tensor:
    every = torch.arange(pool.shape[1], device=table.device)
    return pool[table[:, :, None], every].flatten(1, 2).transpose(1, 2)


@pytest.mark.parametrize("gather", [pages_in_turn, half_of_each_page, two_indices])
def test_what_is_no_table_of_pages_is_gathered_by_the_graph(gather: Callable[..., Tensor]) -> None:
    golden = Paged("other").golden

    def program(**inputs: Tensor) -> Tensor:
        k, v = gather(inputs["keys"], inputs["table"]), gather(inputs["values"], inputs["table"])
        return torch.nn.functional.scaled_dot_product_attention(inputs["q"], k, v, inputs["mask"], enable_gqa=True)

    assert _spec_of(replace(golden, program=program)).page_size == 0


def test_a_table_that_was_reordered_is_a_table() -> None:
    golden = Paged("reordered").golden

    def program(**inputs: Tensor) -> Tensor:
        k, v = sequences_last(inputs["keys"], inputs["table"]), sequences_last(inputs["values"], inputs["table"])
        return torch.nn.functional.scaled_dot_product_attention(inputs["q"], k, v, inputs["mask"], enable_gqa=True)

    assert _spec_of(replace(golden, program=program)).page_size == 4


def test_pages_of_three_keys_are_gathered_by_the_graph() -> None:
    assert _spec_of(Paged("three", page_size=3).golden).page_size == 0


def test_k_and_v_by_two_tables_are_gathered_by_the_graph() -> None:
    assert _spec_of(Paged("two_tables", values_flipped=True).golden).page_size == 0


@pytest.mark.parametrize("by_products", [False, True])
def test_pages_of_one_sequence_that_the_batch_shares_are_gathered_by_the_graph(by_products: bool) -> None:
    golden = Paged("shared", by_products=by_products).golden

    def steps() -> list[dict[str, Tensor]]:
        (step,) = golden.steps()
        return [{**step, "table": step["table"][:1]}]

    assert _spec_of(replace(golden, steps=steps)).page_size == 0


def test_layers_share_the_entries_of_one_table() -> None:
    golden = Paged("layers").golden

    def program(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        first = golden.program(**inputs)
        return first, golden.program(**{**inputs, "q": first})

    eager, problems = run_eagerly(replace(golden, program=program))
    with graphs_run_uncompiled():
        compiled, report = run_compiled(replace(golden, program=program))
    assert [site.spec.page_size for site in report.lowered if site.spec] == [4, 4]
    assert_follows_eager(compiled, eager, problems)


@pytest.mark.parametrize(
    "form", [Paged("failing"), Paged("failing", format=torch.int8, dtype=torch.float16)], ids=["plain", "int8"]
)
def test_what_fails_to_launch_is_gathered_for_pytorch(form: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Tensor:
        raise RuntimeError("no such device")

    monkeypatch.setattr(ops, "launch_decode", fails)
    monkeypatch.setattr(ops, "_failed_configs", {})
    assert _spec_of(form.golden).page_size == 4
