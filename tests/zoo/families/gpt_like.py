"""Learned or rotary positions and one KV head per query head, or one for all: GPT-2 and what came after it."""

from __future__ import annotations

from typing import Any

from ..zoo_model import VOCABULARY, ZooModel
from .llama_like import PLAIN

_TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
_GPT2: dict[str, Any] = _TOKENS | {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
_FALCON: dict[str, Any] = _TOKENS | {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

FAMILY = (
    ZooModel("GPT-2", "GPT2Config", _GPT2, sites=1),
    ZooModel(
        "GPT-Neo",
        "GPTNeoConfig",
        _TOKENS
        | {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64, "window_size": 8}
        | {"attention_types": [[["global", "local"], 1]]},
        sites=2,
    ),
    ZooModel("GPT-NeoX", "GPTNeoXConfig", PLAIN, sites=1),
    ZooModel("GPT-J", "GPTJConfig", _GPT2 | {"rotary_dim": 8}, sites=1),
    ZooModel("GPT-BigCode", "GPTBigCodeConfig", _GPT2, sites=1),
    ZooModel("CodeGen", "CodeGenConfig", _GPT2 | {"n_ctx": 64, "n_head": 4, "rotary_dim": 4}, sites=1),
    ZooModel(
        "OPT",
        "OPTConfig",
        _TOKENS
        | {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
        }
        | {"max_position_embeddings": 64, "pad_token_id": 0},
        sites=1,
    ),
    ZooModel("Falcon", "FalconConfig", _FALCON | {"multi_query": True}, sites=1),
)
