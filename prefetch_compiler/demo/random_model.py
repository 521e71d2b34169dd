"""A model of a given architecture with random weights, and a cache that already holds something."""

from __future__ import annotations

from typing import Any

import torch

from .decode_state import CacheKind, DecodeState
from .errors import ModelNotLoadedError
from .model_source import ModelSource, load_config

_PER_LAYER_LISTS = ("layer_types", "mlp_layer_types")
_SEED = 0


def build_random_model(source: ModelSource, state: DecodeState, dtype: torch.dtype, device: torch.device) -> Any:
    """The architecture that ``source`` configures, untrained: nothing but the configuration is read.

    Raises:
        ModelNotLoadedError: no configuration there, or not a causal language model's.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it tells how the weights are stored, and they are not read
    _keep_layers(config.get_text_config(decoder=True), state.layers)
    torch.manual_seed(_SEED)
    try:
        with device:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=state.attention)
    except (ValueError, ImportError) as error:
        raise ModelNotLoadedError(source.name, error) from error
    return model.eval()


def decode_inputs(model: Any, state: DecodeState) -> dict[str, Any]:
    """Arguments of one decode step, with a cache filled by running the model on random tokens."""
    cache = _empty_cache(model.config, state)
    tokens = torch.randint(model.config.get_text_config(decoder=True).vocab_size, (state.batch, state.held + 1))
    tokens = tokens.to(model.device)
    with torch.no_grad():
        model(input_ids=tokens[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return {"input_ids": tokens[:, -1:], "past_key_values": cache, "use_cache": True}


def _keep_layers(config: Any, layers: int | None) -> None:
    if layers is None or layers >= config.num_hidden_layers:
        return
    for name in _PER_LAYER_LISTS:
        if getattr(config, name, None):
            setattr(config, name, getattr(config, name)[:layers])
    config.num_hidden_layers = layers


def _empty_cache(config: Any, state: DecodeState) -> Any:
    from transformers import DynamicCache, StaticCache

    if state.cache is CacheKind.STATIC:
        return StaticCache(config=config, max_cache_len=state.capacity)
    return DynamicCache(config=config)
