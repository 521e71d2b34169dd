"""DecodeStep: one variant's compiled decode step over a shared state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.utils import counters

from ..report import Report, collect_reports
from .errors import AttentionNotSetError
from .state import StepState
from .variant import Variant, resolve_backend

# The first call of a graph warms up, the second records, the third replays (torch._inductor.cudagraph_trees).
CALLS_TO_REPLAY = 4


class DecodeStep:
    """``step()`` runs the model on ``state.token`` and returns logits (batch, 1, vocabulary).

    The logits live in CUDA-graph memory: copy what must outlive the next step. ``select()`` must come before the first
    step whenever another variant has run: it switches the shared model to this variant's attention.
    """

    def __init__(self, variant: Variant, state: StepState, mode: str) -> None:
        self.variant = variant
        self.state = state
        self.first_call_s = 0.0
        self.report = Report()
        self.graphs = 0
        self.cudagraph_skips = 0
        self._compiled: Any = torch.compile(state.model, backend=resolve_backend(variant.backend), mode=mode)

    def select(self) -> None:
        """Switch the model to this variant's attention.

        Raises:
            AttentionNotSetError: transformers warned, and left it as it was.
        """
        model = self.state.model
        model.set_attn_implementation(self.variant.attention)
        if model.config._attn_implementation != self.variant.attention:
            raise AttentionNotSetError(
                type(model).__name__, self.variant.attention, str(model.config._attn_implementation)
            )

    def __call__(self) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            logits: torch.Tensor = self._compiled(**self.state.step_inputs()).logits
        return logits

    def compile(self, held: int) -> None:
        """Compile, and run until CUDA graphs replay. Counts graphs, reports of sites and seconds of the first call."""
        self.select()
        graphs_before, skips_before = _compiled_graphs(), _cudagraph_skips()
        started = time.perf_counter()
        with collect_reports() as self.report:
            self._settled(held)
        self.first_call_s = time.perf_counter() - started
        for _ in range(CALLS_TO_REPLAY):
            self._settled(held)
        self.graphs = _compiled_graphs() - graphs_before
        self.cudagraph_skips = _cudagraph_skips() - skips_before

    def _settled(self, held: int) -> None:
        self.state.set_length(held)
        self()
        synchronize(self.state.token.device)


def synchronize(device: torch.device) -> None:
    """Wait for the device, where there is something to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """Compiled code and CUDA-graph memory live inside the ``with`` block only."""
    _reset_compiler()
    try:
        yield
    finally:
        _reset_compiler()


def _reset_compiler() -> None:
    torch._dynamo.reset()
    if torch.cuda.is_available():
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()
        torch.cuda.empty_cache()


def _compiled_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def _cudagraph_skips() -> int:
    return int(counters["inductor"]["cudagraph_skips"])
