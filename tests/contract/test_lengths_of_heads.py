"""Heads that hold different numbers of keys: each is read as far as it is held, where that takes views alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from prefetch_compiler.lower.ops import observe_keys_read

from .golden.evicted import BATCH, LENGTH_FIRST, LENGTHS_OF_HEADS
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
