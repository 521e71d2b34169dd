"""A decode loop as users write it: an eager prefill of a left-padded batch, then one compiled step per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.modeling_outputs import BaseModelOutput

from .models import CAPACITY, VOCABULARY, ZooModel, build, encoder_input

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPT = 6
PADDING = (0, 2, 4)
STEPS = 20


@dataclass
class Decoded:
    """``logits`` (steps, batch, vocabulary), greedy ``tokens`` (steps, batch), the cache as the last step left it."""

    logits: Tensor
    tokens: Tensor
    cache: Any


def prompt(batch: int = len(PADDING)) -> tuple[Tensor, Tensor]:
    """Tokens and padding mask (batch, PROMPT); sequence ``b`` starts with PADDING[b] padding tokens."""
    tokens = torch.randint(3, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    for sequence in range(batch):
        mask[sequence, : PADDING[sequence]] = 0
    return (tokens * mask).to(DEVICE), mask.to(DEVICE)


def new_cache(zoo_model: ZooModel, model: Any, kind: str) -> Any:
    """An empty "static" or "dynamic" cache."""
    config = model.config.get_text_config(decoder=True)
    if kind == "static":
        own: Any = StaticCache(config=config, max_cache_len=CAPACITY)
    else:
        own = DynamicCache(config=config)
    return EncoderDecoderCache(own, DynamicCache(config=config)) if zoo_model.has_encoder else own


def _arguments(model: Any, encoded: Tensor | None, tokens: Tensor, mask: Tensor, cache: Any) -> dict[str, Any]:
    """One forward's arguments. Positions count real tokens only."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    if encoded is None:
        return {
            "input_ids": tokens, "attention_mask": mask, "position_ids": positions, "past_key_values": cache,
            "use_cache": True,
        }  # fmt: skip
    return {
        "encoder_outputs": BaseModelOutput(last_hidden_state=encoded), "decoder_input_ids": tokens,
        "decoder_attention_mask": mask, "decoder_position_ids": positions, "past_key_values": cache, "use_cache": True,
    }  # fmt: skip


def decode(
    zoo_model: ZooModel,
    cache_kind: str,
    compile_model: Callable[[Any], Any] = lambda model: model,
    dtype: torch.dtype = torch.float32,
    forced: Tensor | None = None,
    steps: int = STEPS,
) -> Decoded:
    """Prefill eagerly, then ``steps`` greedy steps through ``compile_model(model)``; ``forced`` tokens (steps, batch)
    are fed instead of the model's own."""
    model = build(zoo_model, dtype, DEVICE)
    step = compile_model(model)
    tokens, mask = prompt()
    cache = new_cache(zoo_model, model, cache_kind)
    logits: list[Tensor] = []
    with torch.no_grad():
        encoded = None
        if zoo_model.has_encoder:
            encoded = model.get_encoder()(encoder_input(DEVICE, len(tokens)).to(dtype)).last_hidden_state
        output = model(**_arguments(model, encoded, tokens, mask, cache))
        for at in range(steps):
            chosen = output.logits[:, -1].argmax(-1) if forced is None or at == 0 else forced[at - 1]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = step(**_arguments(model, encoded, chosen[:, None], mask, cache))
            logits.append(output.logits[:, -1].clone())
    stacked = torch.stack(logits)
    return Decoded(stacked, stacked.argmax(-1), cache)


def cached_tensors(cache: Any) -> list[Tensor]:
    """Keys and values of every layer."""
    if isinstance(cache, EncoderDecoderCache):
        return cached_tensors(cache.self_attention_cache) + cached_tensors(cache.cross_attention_cache)
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
