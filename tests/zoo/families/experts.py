"""Mixtures of experts, whose routers hold a softmax that is no attention, and latent attention (MLA)."""

from __future__ import annotations

from typing import Any

from ..zoo_model import VOCABULARY, ZooModel
from .llama_like import GROUPED, PLAIN

_FOUR_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = (
    PLAIN
    | _FOUR_EXPERTS
    | {"num_key_value_heads": 2, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
    | {"v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
    | {"first_k_dense_replace": 0}
)

FAMILY = (
    ZooModel("Mixtral", "MixtralConfig", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, sites=1),
    ZooModel("Qwen3-MoE", "Qwen3MoeConfig", GROUPED | _FOUR_EXPERTS | {"num_experts": 4, "head_dim": 16}, sites=1),
    ZooModel(
        "DBRX",
        "DbrxConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}
        | {"attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0}}
        | {"ffn_config": {"hidden_size": 32, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}},
        sites=1,
    ),
    ZooModel("DeepSeek-V2", "DeepseekV2Config", _LATENT, sites=1),
    ZooModel("DeepSeek-V3", "DeepseekV3Config", _LATENT, sites=1),
)
