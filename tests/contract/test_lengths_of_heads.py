"""Heads that hold different numbers of keys: each is read as far as it is held, where that takes views alone. Blocks
that each head picks: which pickings are no lists of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler.lower.ops import observe_keys_read

from .golden.evicted import BATCH, DIM, KV_LEN, LENGTH_FIRST, LENGTHS_OF_HEADS, PICKED_BLOCKS, PICKED_KEYS
from .golden.graph import Golden
from .golden.run import assert_follows_eager, run_compiled, run_eagerly
from .uncompiled import graphs_run_uncompiled

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def test_every_head_is_read_as_far_as_it_is_held() -> None:
    with graphs_run_uncompiled(), observe_keys_read() as read:
        run_compiled(LENGTHS_OF_HEADS)
    assert list(read.values()) == [(5 + 24 + 17 + 1) / 4]


def test_heads_that_lie_between_one_another_are_read_together() -> None:
    eager, problems = run_eagerly(LENGTH_FIRST)
    with graphs_run_uncompiled(), observe_keys_read() as read:
        compiled, report = run_compiled(LENGTH_FIRST)
    (site,) = report.lowered
    assert site.spec is not None and site.spec.batch == BATCH
    assert list(read.values()) == [(24 + 17) / 2]
    assert_follows_eager(compiled, eager, problems)


def _two_lists(cache: Tensor, picked: Tensor, is_key: bool) -> Tensor:
    return cache.gather(2, (picked if is_key else picked.flip(-1))[..., None].expand(-1, -1, -1, DIM))


def _other_keys_for_other_channels(cache: Tensor, picked: Tensor, is_key: bool) -> Tensor:
    even = torch.arange(DIM, device=cache.device) % 2
    return cache.gather(2, (picked[..., None] + even) % KV_LEN)


def _channels_instead(cache: Tensor, picked: Tensor, is_key: bool) -> Tensor:
    """A list of heads picks among channels: (batch, kv_heads, keys, 3 of 32), padded."""
    chosen = cache.gather(3, picked[:, :, None].expand(-1, -1, KV_LEN, -1))
    return torch.cat([chosen, cache[..., 3:]], -1)


def _heads_between_one_another(cache: Tensor, picked: Tensor, is_key: bool) -> Tensor:
    return cache.view(BATCH, KV_LEN, -1, DIM).transpose(1, 2).gather(2, picked[..., None].expand(-1, -1, -1, DIM))


@pytest.mark.parametrize(
    "pick", [_two_lists, _other_keys_for_other_channels, _channels_instead, _heads_between_one_another]
)
def test_what_is_no_list_of_blocks_is_picked_by_the_graph(pick: Callable[[Tensor, Tensor, bool], Tensor]) -> None:
    def program(q: Tensor, keys: Tensor, values: Tensor, picked: Tensor) -> Tensor:
        k, v = pick(keys, picked, True), pick(values, picked, False)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    golden = replace(PICKED_KEYS, program=program)
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    (site,) = report.lowered
    assert site.spec is not None and site.spec.page_size == 0
    assert_follows_eager(compiled, eager, problems)


def _shared_by_the_batch(golden: Golden) -> Golden:
    """One sequence's cache serves two, whose heads see different numbers of its keys, or all of one list."""

    def steps() -> list[dict[str, Any]]:
        (step,) = golden.steps()
        shared = {name: step[name][:1].clone() for name in ("keys", "values", "picked") if name in step}
        return [{**step, **shared}]

    return replace(golden, steps=steps)


@pytest.mark.parametrize("golden", [LENGTHS_OF_HEADS, PICKED_BLOCKS], ids=str)
def test_heads_of_a_cache_that_the_batch_shares_stay_together(golden: Golden) -> None:
    golden = _shared_by_the_batch(golden)
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    (site,) = report.lowered
    assert site.spec is not None and site.spec.page_size == 0
    assert_follows_eager(compiled, eager, problems)
