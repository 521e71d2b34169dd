"""Every architecture of the zoo, and how a model of it is made: tiny, with the same random weights at every call."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from .families import alibi, encoder_decoder, experts, gpt_like, llama_like, windows
from .families.llama_like import LLAMA
from .zoo_model import ENCODED_LENGTH, VOCABULARY, ZooModel

__all__ = ["FAMILIES", "LLAMA", "ZOO", "build", "encoder_input", "named"]

FAMILIES: tuple[tuple[ZooModel, ...], ...] = (
    llama_like.FAMILY,
    windows.FAMILY,
    experts.FAMILY,
    gpt_like.FAMILY,
    alibi.FAMILY,
    encoder_decoder.FAMILY,
)
ZOO: tuple[ZooModel, ...] = tuple(zoo_model for family in FAMILIES for zoo_model in family)


def named(name: str) -> ZooModel:
    """The architecture of that name."""
    return next(zoo_model for zoo_model in ZOO if zoo_model.name == name)


def build(zoo_model: ZooModel, dtype: torch.dtype, device: torch.device, attention: str = "sdpa") -> Any:
    """The model, for inference, with one of transformers' attention implementations.

    Raises:
        ValueError: transformers has no such implementation for the architecture.
    """
    auto_class = getattr(transformers, zoo_model.auto_class)
    torch.manual_seed(11)
    model = auto_class.from_config(zoo_model.config(), attn_implementation=attention, dtype=torch.float32).eval()
    _randomise(model)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # the default has no float64
    return model.to(device, dtype)


def _randomise(model: torch.nn.Module) -> None:
    """Weights so large that heads attend sharply. The usual small ones make all keys alike: a wrong window, bias or cap
    would not be seen."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)


def encoder_input(zoo_model: ZooModel, device: torch.device, batch: int) -> Tensor:
    """What the encoder reads: tokens (batch, ENCODED_LENGTH), or log-mel features (batch, 8, 2 * ENCODED_LENGTH), whose
    length Whisper's encoder halves."""
    generator = torch.Generator().manual_seed(5)
    if zoo_model.hears:
        return torch.randn((batch, 8, 2 * ENCODED_LENGTH), generator=generator).to(device)
    return torch.randint(3, VOCABULARY, (batch, ENCODED_LENGTH), generator=generator).to(device)
