"""The model under test: Llama-8B shapes with random weights, or a real pretrained decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ..demo import model_source
from ..demo.model_source import ModelSource
from .case import RANDOM_LLAMA
from .state import EAGER_ATTENTION


@dataclass(frozen=True)
class BenchModel:
    """A model with random weights, or a pretrained one where ``source`` says from where. ``attention`` is what the
    former is made with: not every architecture has SDPA."""

    name: str
    config: Any
    source: ModelSource | None = None
    attention: str = EAGER_ATTENTION

    def load(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
        """The model in evaluation mode; random weights are drawn on ``device``, not copied there."""
        if self.source is not None:
            model = model_source.load_model(self.source, dtype, device)
        else:
            torch.manual_seed(seed)
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(self.config, dtype=dtype, attn_implementation=self.attention)
        return model.eval().requires_grad_(False)

    def on_meta(self, dtype: torch.dtype) -> Any:
        """The parameters as shapes only, to count bytes with."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config, dtype=dtype)


def llama_8b_config(layers: int) -> LlamaConfig:
    """Llama-8B's layer shapes (32 query heads, 8 KV heads, head_dim 128) with a vocabulary of 32,000."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        tie_word_embeddings=False,
    )


def find_bench_model(name: str, layers: int) -> BenchModel:
    """``llama-8b`` with ``layers`` layers, or what :func:`prefetch_compiler.demo.model_source.find_model` finds."""
    if name == RANDOM_LLAMA:
        return BenchModel(name, llama_8b_config(layers))
    source = model_source.find_model(name)
    return BenchModel(name, model_source.load_config(source), source)
