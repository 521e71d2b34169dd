"""Explain one decode step of a named architecture: build it, fill its cache, compile, report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..explainer import explain
from ..report import Report
from .decode_state import CacheKind, DecodeState
from .device_choice import choose_device, choose_dtype
from .model_source import find_model, quiet_transformers
from .progress import StageProgress
from .random_model import build_random_model, decode_inputs


@dataclass(frozen=True)
class ExplainedModel:
    """What was compiled, and the report on it."""

    model: str
    device: torch.device
    dtype: torch.dtype
    state: DecodeState
    report: Report

    def describe(self) -> str:
        """One line for people."""
        state = self.state
        dtype = str(self.dtype).removeprefix("torch.")
        capacity = f" of {state.capacity}" if state.cache is CacheKind.STATIC else ""
        return (
            f"{self.model} with random weights, {dtype} on {self.device}: one decode step, batch {state.batch}, "
            f"{state.cache.value} cache holding {state.held}{capacity}, attention '{state.attention}'"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch": self.state.batch,
            "held": self.state.held,
            "capacity": self.state.capacity if self.state.cache is CacheKind.STATIC else None,
            "cache": self.state.cache.value,
            "attention": self.state.attention,
            "report": self.report.to_dict(),
        }


def explain_model(
    name: str,
    state: DecodeState,
    dtype: str | None,
    device: str | None,
    progress: StageProgress,
    options: dict[str, Any] | None = None,
) -> ExplainedModel:
    """Compile one decode step of the architecture called ``name`` and report on every attention site. ``options`` are
    torch.compile's.

    Raises:
        KVPrefetchError: the model, device or dtype is missing or unknown.
    """
    source = find_model(name)
    target = choose_device(device)
    element = choose_dtype(dtype, target)
    quiet_transformers()
    with progress.stage(f"build {name} with random weights"):
        model = build_random_model(source, state, element, target)
    with progress.stage(f"fill the cache with {state.held} tokens"):
        inputs = decode_inputs(model, state)
    with progress.stage("compile and run one decode step"), torch.no_grad():
        report = explain(model, options=options, **inputs)
    return ExplainedModel(name, target, element, state, report)
