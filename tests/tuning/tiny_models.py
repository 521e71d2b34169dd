"""Tiny configurations of the ways in which transformers' decoders write attention, and what explain() says of them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from prefetch_compiler import explain
from prefetch_compiler.database.key import TuningKey, key_of
from prefetch_compiler.report import SiteReport

transformers = pytest.importorskip("transformers")

BATCH, CAPACITY = 3, 48
# More than the windows below hold: a window that fills has the same keys.
HELD = 12

_COMMON: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA3 = {"num_hidden_layers": 2, "head_dim": 24, "layer_types": ["sliding_attention", "full_attention"]}

CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**_COMMON),
    "qwen2": transformers.Qwen2Config(**_COMMON),
    "phi3": transformers.Phi3Config(**_COMMON, sliding_window=10),
    "gemma3": transformers.Gemma3TextConfig(**_COMMON | _GEMMA3, sliding_window=8),
    "gpt2": transformers.GPT2Config(
        vocab_size=32, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
}


def explained_keys(name: str, cache_kind: str, held: int, device: str, dtype: torch.dtype) -> set[TuningKey]:
    """The keys of the graph that a real decode step ends up with."""
    sites = explained_sites(name, cache_kind, held, device, dtype)
    return {key_of(site.spec) for site in sites if site.lowered and site.spec is not None}


@lru_cache
def explained_sites(name: str, cache_kind: str, held: int, device: str, dtype: torch.dtype) -> list[SiteReport]:
    """The sites of the graph that a real decode step ends up with: a real model on ``device``, really compiled and
    run. The cache holds ``held`` keys before the first step."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name], dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval()
    tokens = torch.randint(3, 32, (BATCH, held), device=device)
    if cache_kind == "static":
        cache: Any = transformers.StaticCache(config=model.config, max_cache_len=CAPACITY)
    else:
        cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=tokens, past_key_values=cache, use_cache=True)
    report = explain(_Steps(model, 1 if cache_kind == "static" else 2), tokens[:, :1], cache)
    last = max(site.graph for site in report.sites)
    return [site for site in report.sites if site.graph == last]


class _Steps:
    """Decode steps, so that a growing cache shows its second length too. Only the model is compiled, not this loop."""

    def __init__(self, model: Any, steps: int) -> None:
        self._model, self._steps = model, steps

    @torch.compiler.disable(recursive=False)
    def __call__(self, tokens: torch.Tensor, cache: Any) -> None:
        for _ in range(self._steps):
            self._model(input_ids=tokens, past_key_values=cache, use_cache=True)
