"""Rotary positions, grouped or plain heads, one kind of attention layer: Llama and what is built like it."""

from __future__ import annotations

from typing import Any

from ..zoo_model import VOCABULARY, ZooModel

GROUPED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN: dict[str, Any] = {name: value for name, value in GROUPED.items() if name != "num_key_value_heads"}
_WIDE = GROUPED | {"hidden_size": 64, "num_attention_heads": 4}

LLAMA = ZooModel("Llama", "LlamaConfig", _WIDE | {"num_hidden_layers": 2, "num_key_value_heads": 2}, sites=2)

FAMILY = (
    LLAMA,
    ZooModel("Qwen2", "Qwen2Config", GROUPED, sites=1),
    ZooModel("Qwen3", "Qwen3Config", _WIDE | {"head_dim": 16}, sites=1),
    ZooModel("Gemma", "GemmaConfig", GROUPED | {"head_dim": 16}, sites=1),
    ZooModel("Phi", "PhiConfig", PLAIN, sites=1),
    ZooModel("Phi3", "Phi3Config", _WIDE, sites=1),
    ZooModel("OLMo", "OlmoConfig", GROUPED, sites=1),
    ZooModel("OLMo2", "Olmo2Config", GROUPED, sites=1),
    ZooModel("Cohere", "CohereConfig", GROUPED, sites=1),
    ZooModel("StableLM", "StableLmConfig", GROUPED, sites=1),
    ZooModel("Starcoder2", "Starcoder2Config", GROUPED, sites=1),
    # Three query heads share a KV head: FlexAttention's integration repeats keys where this is no power of two.
    ZooModel("GLM4", "Glm4Config", GROUPED | {"hidden_size": 48, "num_attention_heads": 3, "head_dim": 16}, sites=1),
    # Scores are not scaled by 1 / sqrt(head_dim) here.
    ZooModel("Granite", "GraniteConfig", GROUPED | {"attention_multiplier": 0.1}, sites=1),
    ZooModel("Nemotron", "NemotronConfig", GROUPED | {"head_dim": 16}, sites=1),
    ZooModel("Persimmon", "PersimmonConfig", PLAIN, sites=1),
    ZooModel("SmolLM3", "SmolLM3Config", GROUPED | {"num_hidden_layers": 2, "no_rope_layers": [1, 0]}, sites=2),
    ZooModel("Helium", "HeliumConfig", GROUPED | {"head_dim": 16}, sites=1),
)
