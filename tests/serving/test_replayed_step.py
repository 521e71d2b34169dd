"""The step that tests/gpu/test_replay.py replays on a GPU, run here without a graph: it counts what is wrong."""

from __future__ import annotations

import pytest
import torch

from prefetch_compiler.bench.numerics.group import GPU_SIZES, INTERPRETER_SIZES
from prefetch_compiler.device import current_device

from ..gpu import replay
from ..gpu.replay import REPLAYED, ReplayedStep

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = GPU_SIZES if torch.cuda.is_available() else INTERPRETER_SIZES
GROUPS = {group.name: group for group in REPLAYED}
STEPS = 4


def stepped(name: str) -> ReplayedStep:
    with torch.no_grad():
        made = ReplayedStep(GROUPS[name], SIZES, 2, 2, current_device())
        for _ in range(STEPS):
            made.step()
    return made


@pytest.mark.parametrize("name", ["split_kv_decode: bool mask", "split_kv_decode: pages", "quantised_decode: int8"])
def test_steps_find_nothing_wrong(name: str) -> None:
    made = stepped(name)
    assert int(made.steps) == STEPS
    assert int(made.mismatches) == 0
    assert made.seen.isfinite().all()


def test_a_step_that_keeps_old_lengths_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a graph would that had captured lengths, and not where they lie."""
    launch = replay.launch_decode
    monkeypatch.setattr(
        replay, "launch_decode", lambda *given, lengths, **named: launch(*given, lengths=lengths * 0 + 9, **named)
    )
    assert int(stepped("split_kv_decode: pages").mismatches) > 0


def test_a_bit_that_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a race: too small for any bound."""
    launch, calls = replay.launch_decode, list[None]()

    def racing(*given: object, **named: object) -> torch.Tensor:
        out = launch(*given, **named)  # type: ignore[arg-type]
        calls.append(None)
        if len(calls) == STEPS:
            out.view(torch.int16)[0, 0, 0, 0] ^= 1
        return out

    monkeypatch.setattr(replay, "launch_decode", racing)
    assert int(stepped("split_kv_decode: splits, merged in place").mismatches) == 1
