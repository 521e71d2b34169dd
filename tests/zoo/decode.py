"""A decode loop as users write it: an eager prefill of the prompt, then compiled steps of one token or a few."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import BaseModelOutput

from .caches import CAPACITY, new_cache
from .cell import Cell
from .eagerly import float64_throughout, nothing_compiled
from .models import build, encoder_input
from .workload import PADDED, PROMPT, Workload
from .zoo_model import VOCABULARY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Decoded:
    """``logits`` (steps, batch, q_len, vocabulary), the tokens that each step was ``fed`` (steps, batch, q_len), and
    the cache as the last step left it."""

    logits: Tensor
    fed: Tensor
    cache: Any

    @property
    def tokens(self) -> Tensor:
        """The likeliest next token after each that was fed (steps, batch, q_len)."""
        return self.logits.argmax(-1)


def prompt(workload: Workload = PADDED) -> tuple[Tensor, Tensor]:
    """Tokens and padding mask (batch, PROMPT)."""
    tokens = torch.randint(3, VOCABULARY, (workload.batch, PROMPT), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    for sequence, padding in enumerate(workload.padding):
        mask[sequence, :padding] = 0
    return (tokens * mask).to(DEVICE), mask.to(DEVICE)


def drafts(workload: Workload) -> Tensor:
    """Tokens (steps, batch, q_len) to feed where a step takes several: a model would not guess its own so far ahead."""
    shape = (workload.steps, workload.batch, workload.q_len)
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)


class Decoder:
    """A cell's model, its cache and its padding mask, as they are after the tokens so far."""

    def __init__(self, cell: Cell, workload: Workload, model: Any, capacity: int = CAPACITY) -> None:
        self.model = model
        self.cache = new_cache(cell.model, model, cell.cache, capacity)
        self._capacity = capacity
        self._masked = workload.masked
        self._whole_mask = cell.cache == "static" and cell.model.mask_covers_static_cache
        # transformers cannot make those of chunked layers ahead.
        chunked = hasattr(self.model.config, "attention_chunk_size")
        self._masks_ahead = cell.attention == "flex_attention" and not cell.model.has_encoder and not chunked
        self._decoder = "decoder_" if cell.model.has_encoder else ""
        self._accepted = inspect.signature(self.model.forward).parameters
        self._constant: dict[str, Any] = {"use_cache": True, "past_key_values": self.cache}
        if cell.model.has_encoder:
            self._constant |= self._encoded(cell, workload)

    def _encoded(self, cell: Cell, workload: Workload) -> dict[str, Any]:
        """What the encoder says of its input. Text is right-padded where prompts are padded."""
        inputs = encoder_input(cell.model, DEVICE, workload.batch)
        if cell.model.hears:
            states = self.model.get_encoder()(inputs.to(self.model.dtype)).last_hidden_state
            return {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
        mask = torch.ones_like(inputs)
        for sequence, padding in enumerate(workload.padding):
            mask[sequence, len(mask[sequence]) - padding :] = 0
        arguments = {"attention_mask": mask} if self._masked else {}
        states = self.model.get_encoder()(inputs, **arguments).last_hidden_state
        return {"encoder_outputs": BaseModelOutput(last_hidden_state=states), **arguments}

    def arguments(self, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
        """The model's arguments for ``tokens`` (batch, q_len), given the mask (batch, length so far, these tokens
        included). Positions count real tokens only."""
        arguments = {f"{self._decoder}input_ids": tokens, **self._constant}
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if self._masked and f"{self._decoder}position_ids" in self._accepted:
            arguments[f"{self._decoder}position_ids"] = positions
        if self._whole_mask:
            arguments["attention_mask"] = functional.pad(mask, (0, self._capacity - mask.shape[1]))
        elif self._masks_ahead:
            arguments["attention_mask"] = self._block_masks(tokens, mask, positions)
        elif self._masked:
            arguments[f"{self._decoder}attention_mask"] = mask
        return arguments

    def _block_masks(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Any:
        """FlexAttention's masks, made before the compiled step as ``generate`` does with a static cache: Dynamo breaks
        the graph where they are made."""
        with nothing_compiled():
            return create_masks_for_generate(
                config=self.model.config,
                inputs_embeds=torch.empty((*tokens.shape, 0), dtype=self.model.dtype, device=DEVICE),
                attention_mask=mask,
                past_key_values=self.cache,
                position_ids=positions,
            )


def decode(
    cell: Cell,
    workload: Workload = PADDED,
    compile_model: Callable[[Any], Any] | None = None,
    dtype: torch.dtype = torch.float32,
    fed: Tensor | None = None,
) -> Decoded:
    """Prefill eagerly, then decode through ``compile_model(model)``, or eagerly too. Steps of one token are greedy,
    unless ``fed`` (steps, batch, q_len) says what each is fed."""
    if fed is None and workload.q_len > 1:
        fed = drafts(workload)
    exact = float64_throughout() if dtype == torch.float64 else nullcontext()
    with torch.no_grad(), exact:
        with nothing_compiled():
            decoder = Decoder(cell, workload, build(cell.model, dtype, DEVICE, cell.attention))
        return continued(decoder, *prompt(workload), workload, compile_model, fed)


def continued(
    decoder: Decoder,
    tokens: Tensor,
    mask: Tensor,
    workload: Workload,
    compile_model: Callable[[Any], Any] | None = None,
    fed: Tensor | None = None,
) -> Decoded:
    """Prefill ``tokens`` with their padding ``mask`` (batch, length), then decode as above."""
    with nothing_compiled():
        logits = [decoder.model(**decoder.arguments(tokens, mask)).logits[:, -1:]]
        if compile_model is None:
            return _steps(decoder, decoder.model, workload, mask, logits, fed)
    return _steps(decoder, compile_model(decoder.model), workload, mask, logits, fed)


def _steps(
    decoder: Decoder, call: Any, workload: Workload, mask: Tensor, logits: list[Tensor], fed: Tensor | None
) -> Decoded:
    """Decode after a prefill whose last ``logits`` (batch, 1, vocabulary) are given."""
    inputs: list[Tensor] = []
    for step in range(workload.steps):
        inputs.append(logits[-1].argmax(-1) if fed is None else fed[step])
        mask = torch.cat([mask, mask.new_ones(workload.batch, workload.q_len)], dim=1)
        logits.append(call(**decoder.arguments(inputs[-1], mask)).logits.clone())
    return Decoded(torch.stack(logits[1:]), torch.stack(inputs), decoder.cache)
