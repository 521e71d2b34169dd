"""StepState: the static KV cache and the input token of one decode step, at a chosen fill level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from .errors import ShortPromptError, UnsupportedCacheError

# What the uncompiled model attends with; compiled variants choose their own.
EAGER_ATTENTION = "sdpa"


@dataclass
class StepState:
    """What a decode step of ``model`` reads and writes. All variants of a case share it.

    Attributes:
        cache: a StaticCache whose layers hold keys and values (batch, kv_heads, capacity, head_dim).
        token: the input token of each sequence, int64 (batch, 1).
        prompt: real tokens (batch, length) that the cache is filled from; None fills it with random numbers.
        inputs: what else the model is called with.
    """

    model: Any
    cache: StaticCache
    token: torch.Tensor
    prompt: torch.Tensor | None = None
    inputs: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def create(model: Any, batch: int, capacity: int, prompt: torch.Tensor | None = None) -> StepState:
        """Allocate the caches. One eager step lets each layer take the shapes and dtype that the model gives it, and
        mark its storage as static for CUDA graphs.

        Raises:
            UnsupportedCacheError: the model's cache is not full attention in every layer.
        """
        device = model.device
        cache = StaticCache(config=model.config, max_cache_len=capacity)
        if any(type(layer) is not StaticLayer for layer in cache.layers):
            raise UnsupportedCacheError(sorted({type(layer).__name__ for layer in cache.layers}))
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        token = torch.randint(vocabulary, (batch, 1), device=device)
        state = StepState(model, cache, token, prompt)
        model.set_attn_implementation(EAGER_ATTENTION)
        state.eager_step()
        return state

    @property
    def capacity(self) -> int:
        return int(self.cache.layers[0].max_cache_len)

    def fill(self, held: int, seed: int = 0) -> None:
        """Make the cache hold ``held`` keys: from the prompt through the eager model, or random. What lies beyond
        ``held`` is made ordinary numbers too, so that no variant profits from zeros."""
        generator = torch.Generator(device=self.token.device).manual_seed(seed)
        for layer in self.cache.layers:
            layer.keys.normal_(generator=generator)
            layer.values.normal_(generator=generator)
        if self.prompt is not None:
            self._prefill(held)
        self.set_length(held)

    def _prefill(self, held: int) -> None:
        assert self.prompt is not None
        if self.prompt.shape[1] <= held:
            raise ShortPromptError(self.prompt.shape[1], held + 1)
        self.set_length(0)
        self.model.set_attn_implementation(EAGER_ATTENTION)
        with torch.no_grad():
            self.model(self.prompt[:, :held], past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.token.copy_(self.prompt[:, held : held + 1])

    def eager_step(self) -> torch.Tensor:
        """One step of the model as it is, not compiled: logits (batch, 1, vocabulary)."""
        with torch.no_grad():
            logits: torch.Tensor = self.model(**self.step_inputs()).logits
        return logits

    def step_inputs(self) -> dict[str, Any]:
        """What the model is called with, each step."""
        return {"input_ids": self.token, "past_key_values": self.cache, "use_cache": True, **self.inputs}

    def set_length(self, held: int) -> None:
        """Set every layer's fill level in place, so that captured graphs see it."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(held)

    def lengths(self) -> list[int]:
        """Keys held by each layer."""
        return [int(layer.cumulative_length) for layer in self.cache.layers]

    def written_row(self, position: int) -> torch.Tensor:
        """A copy of the keys and values at one position, over layers: (layers, 2, batch, kv_heads, head_dim)."""
        return torch.stack(
            [torch.stack((layer.keys[:, :, position], layer.values[:, :, position])) for layer in self.cache.layers]
        )

    def poison_row(self, position: int) -> None:
        """Make one position NaN, so that a step which does not write it cannot pass for one that does."""
        for layer in self.cache.layers:
            layer.keys[:, :, position] = float("nan")
            layer.values[:, :, position] = float("nan")
