"""The state of one decode step of an architecture, whose layers may keep no more than a window."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StaticCache

from ..case import Case
from ..state import StepState
from .catalogue import Architecture


class WindowedState(StepState):
    """A StaticCache with the architecture's own layers.

    A layer with a window counts in Python what it has seen, and that number guards a compiled step: another one is
    another graph. So each step begins from the count that :meth:`fill` left; what layers without a window hold grows.
    """

    held: int = 0

    @staticmethod
    def of(architecture: Architecture, model: Any, case: Case) -> WindowedState:
        """Caches allocated, nothing held."""
        cache = StaticCache(config=model.config, max_cache_len=case.capacity)
        token = torch.randint(model.config.vocab_size, (case.batch, 1), device=model.device)
        state = WindowedState(model, cache, token)
        if architecture.needs_mask:
            state.inputs["attention_mask"] = torch.ones(
                case.batch, case.capacity, dtype=torch.int64, device=model.device
            )
        model.set_attn_implementation(architecture.attention)
        state.eager_step()
        return state

    def fill(self, held: int, seed: int = 0) -> None:
        """As StepState's, windows included."""
        self.held = held
        super().fill(held, seed)

    def set_length(self, held: int) -> None:
        """Set every layer's fill level in place."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(min(held, layer.max_cache_len))

    def step_inputs(self) -> dict[str, Any]:
        """As StepState's, with every window's count as :meth:`fill` left it."""
        for layer in self.cache.layers:
            if hasattr(layer, "cumulative_length_int"):
                layer.cumulative_length_int = self.held
        return super().step_inputs()

    def contents(self) -> list[torch.Tensor]:
        """Copies of all keys and values."""
        return [tensor.clone() for layer in self.cache.layers for tensor in (layer.keys, layer.values)]

    def lengths(self) -> list[int]:
        """Keys that each layer has seen."""
        return [int(getattr(layer, "cumulative_length_int", layer.cumulative_length)) for layer in self.cache.layers]

    def in_float64(self, model: Any) -> WindowedState:
        """The same state of ``model``, this one's in float64."""
        cache = StaticCache(config=model.config, max_cache_len=max(layer.max_cache_len for layer in self.cache.layers))
        state = WindowedState(model, cache, self.token, inputs=self.inputs)
        state.eager_step()
        for mine, theirs in zip(cache.layers, self.cache.layers, strict=True):
            mine.keys.copy_(theirs.keys)
            mine.values.copy_(theirs.values)
        state.held = self.held
        state.set_length(self.held)
        return state
