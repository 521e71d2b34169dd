"""The key-value caches that the zoo decodes with. Each has the architecture's own layers with a window or a state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import DynamicLayer

from .zoo_model import ZooModel

CAPACITY = 32
KINDS = ("static", "dynamic", "fp8")


class Fp8Layer(DynamicLayer):  # type: ignore[misc]
    """A growing layer that keeps keys and values in float8_e4m3fn, each with one scale: that of the prompt."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.key_scale, self.value_scale = (states.abs().amax() / 448 for states in (key_states, value_states))
        self.keys, self.values = (self.keys.to(torch.float8_e4m3fn), self.values.to(torch.float8_e4m3fn))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, new, head_dim); return all, dequantised to the dtype of what is new."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = _quantised(key_states, self.key_scale), _quantised(value_states, self.value_scale)
        else:
            self.keys = torch.cat([self.keys, _quantised(key_states, self.key_scale)], dim=-2)
            self.values = torch.cat([self.values, _quantised(value_states, self.value_scale)], dim=-2)
        return (
            self.keys.to(key_states.dtype) * self.key_scale,
            self.values.to(value_states.dtype) * self.value_scale,
        )


def _quantised(states: Tensor, scale: Tensor) -> Tensor:
    """Saturating: beyond 448 the format has no numbers, and conversion gives NaN."""
    return (states / scale).clamp(-448, 448).to(torch.float8_e4m3fn)


def new_cache(zoo_model: ZooModel, model: Any, kind: str, capacity: int = CAPACITY) -> Any:
    """An empty cache of one of the KINDS; a static one has room for ``capacity`` keys."""
    config = model.config.get_text_config(decoder=True)
    if kind == "static":
        own: Any = StaticCache(config=config, max_cache_len=capacity)
    elif kind == "fp8":
        own = Cache(layers=[Fp8Layer() for _ in range(config.num_hidden_layers)])
    else:
        own = DynamicCache(config=config)
    return EncoderDecoderCache(own, DynamicCache(config=config)) if zoo_model.has_encoder else own


def cached_tensors(cache: Any) -> list[Tensor]:
    """All that the layers keep: keys and values, the states of layers that have those, each as floating point."""
    if isinstance(cache, EncoderDecoderCache):
        return cached_tensors(cache.self_attention_cache) + cached_tensors(cache.cross_attention_cache)
    return [tensor for layer in cache.layers for tensor in _kept(layer)]


def _kept(layer: Any) -> list[Tensor]:
    """A layer's tensors. Convolutional and recurrent states are kept in dictionaries."""
    kept: list[Any] = []
    for name in ("keys", "values", "conv_states", "recurrent_states"):
        value = getattr(layer, name, None)
        kept += value.values() if isinstance(value, dict) else [value]
    return [tensor for tensor in kept if isinstance(tensor, Tensor)]
