"""Greedy decoding of a real model through a decode step: tokens per second, and the tokens themselves."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .state import StepState
from .step import synchronize


def greedy_tokens(
    step: Callable[[], torch.Tensor], state: StepState, held: int, steps: int
) -> tuple[torch.Tensor, float]:
    """Decode ``steps`` tokens per sequence from ``held`` keys on.

    Returns:
        tokens (batch, steps) and the seconds they took, the host's work and the choice of each token included.
    """
    first = state.token.clone()
    chosen = torch.empty((first.shape[0], steps), dtype=first.dtype, device=first.device)
    state.set_length(held)
    synchronize(first.device)
    started = time.perf_counter()
    for index in range(steps):
        state.token.copy_(step()[:, -1].argmax(-1, keepdim=True))
        chosen[:, index] = state.token[:, 0]
    synchronize(first.device)
    elapsed_s = time.perf_counter() - started
    state.token.copy_(first)
    return chosen, elapsed_s
