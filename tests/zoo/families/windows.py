"""Layers that see a window or a chunk of the keys, or that keep a state in place of keys, beside layers that see all.

Windows and chunks are 8 keys long, so that a run of thirty tokens fills them, is full and moves on.
"""

from __future__ import annotations

from ..zoo_model import ZooModel
from .llama_like import GROUPED

_SLIDING_AND_FULL = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
_WINDOW = {"sliding_window": 8}

FAMILY = (
    ZooModel("Mistral", "MistralConfig", GROUPED | _WINDOW, sites=1),
    # Capped low, so that the cap is felt.
    ZooModel(
        "Gemma2",
        "Gemma2Config",
        GROUPED
        | _SLIDING_AND_FULL
        | _WINDOW
        | {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
        sites=2,
    ),
    ZooModel(
        "Gemma3",
        "Gemma3TextConfig",
        GROUPED | _SLIDING_AND_FULL | _WINDOW | {"head_dim": 16, "query_pre_attn_scalar": 16},
        sites=2,
    ),
    ZooModel("Cohere2", "Cohere2Config", GROUPED | _SLIDING_AND_FULL | _WINDOW, sites=2),
    ZooModel(
        "Llama4 (text)",
        "Llama4TextConfig",
        GROUPED
        | {"num_hidden_layers": 2, "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]}
        | {"attention_chunk_size": 8, "head_dim": 16, "moe_layers": [], "intermediate_size_mlp": 64}
        | {"num_local_experts": 2},
        sites=2,
    ),
    ZooModel(
        "gpt-oss",
        "GptOssConfig",
        GROUPED
        | _SLIDING_AND_FULL
        | _WINDOW
        | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        sites=2,
    ),
    ZooModel(
        "Qwen3-Next",
        "Qwen3NextConfig",
        GROUPED
        | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "head_dim": 16}
        | {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
        | {"linear_num_key_heads": 1, "linear_num_value_heads": 2}
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        | {"shared_expert_intermediate_size": 32},
        sites=1,
    ),
    ZooModel(
        "LFM2",
        "Lfm2Config",
        GROUPED
        | {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        sites=1,
    ),
)
