"""A captured step is right at every replay, whatever lengths were written in between.

KVPREFETCH_REPLAYS=100000 is the long run."""

from __future__ import annotations

import os

import pytest
import torch

from prefetch_compiler.bench.numerics.group import GPU_SIZES, Group, runnable
from prefetch_compiler.device import current_device, profile
from prefetch_compiler.tuning.cuda_graph import graph_of

from .replay import REPLAYED, ReplayedStep

pytestmark = pytest.mark.gpu

REPLAYS = int(os.environ.get("KVPREFETCH_REPLAYS", "2000"))
VECTORS, BATCH = 64, 4


@pytest.mark.parametrize("group", REPLAYED, ids=lambda group: group.name)
def test_every_replay_follows_its_lengths(group: Group) -> None:
    device = current_device()
    chosen = runnable(group, GPU_SIZES, BATCH, profile(device))
    if isinstance(chosen, str):
        pytest.skip(chosen)
    replayed = ReplayedStep(group, GPU_SIZES, BATCH, VECTORS, device)
    graph = graph_of(replayed.step, device)
    done = int(replayed.steps)
    replays = -(-REPLAYS // len(REPLAYED))
    for _ in range(replays):
        graph.replay()
    torch.cuda.synchronize(device)
    assert int(replayed.steps) == done + replays
    assert int(replayed.mismatches) == 0
    assert replays < 8 * VECTORS or replayed.seen.isfinite().all()
