"""The architectures that are measured: their true dimensions, in two layers.

Numbers are those of the ``config.json`` that each comment names on the Hugging Face hub. Vocabularies are 32,000 words,
so that what is measured is layers. Where layers are of two kinds there is one of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UnknownArchitectureError

LAYERS = 2
VOCABULARY = 32000
_ONE_OF_EACH = ["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Architecture:
    """A model of transformers with random weights.

    Attributes:
        config_class: of transformers.
        settings: that class's arguments.
        attention: the ``attn_implementation`` whose results are the architecture's own: ``sdpa``, unless transformers
            has none, or one that leaves something out.
        needs_mask: whether positions come from a padding mask, which has to be as long as a static cache.
        routed: whether a router chooses among experts. Of two that are all but as good rounding decides, so that right
            results may differ much in a sequence or two.
    """

    name: str
    config_class: str
    settings: Mapping[str, Any] = field(hash=False)
    attention: str = "sdpa"
    needs_mask: bool = False
    routed: bool = False

    def config(self) -> Any:
        """A new configuration: models write into theirs."""
        import transformers

        return getattr(transformers, self.config_class)(**{"vocab_size": VOCABULARY, **_TOKENS, **self.settings})


_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _sizes(hidden: int, intermediate: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 131072,
        **more,
    }


CATALOGUE = (
    # meta-llama/Meta-Llama-3-8B
    Architecture("Llama-3-8B", "LlamaConfig", _sizes(4096, 14336, 32, 8)),
    # mistralai/Mistral-7B-v0.1
    Architecture("Mistral-7B", "MistralConfig", _sizes(4096, 14336, 32, 8, sliding_window=4096)),
    # Qwen/Qwen2.5-7B
    Architecture("Qwen2.5-7B", "Qwen2Config", _sizes(3584, 18944, 28, 4)),
    # Qwen/Qwen3-8B
    Architecture("Qwen3-8B", "Qwen3Config", _sizes(4096, 12288, 32, 8, head_dim=128)),
    # google/gemma-2-9b; SDPA has no soft cap
    Architecture(
        "Gemma-2-9B",
        "Gemma2Config",
        _sizes(3584, 14336, 16, 8, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096)
        | {"layer_types": _ONE_OF_EACH},
        attention="eager",
    ),
    # text_config of google/gemma-3-12b-pt
    Architecture(
        "Gemma-3-12B",
        "Gemma3TextConfig",
        _sizes(3840, 15360, 16, 8, head_dim=256, query_pre_attn_scalar=256, sliding_window=1024)
        | {"layer_types": _ONE_OF_EACH},
    ),
    # microsoft/Phi-3-mini-128k-instruct
    Architecture("Phi-3-mini", "Phi3Config", _sizes(3072, 8192, 32, 32, sliding_window=262144)),
    # allenai/OLMo-2-1124-7B
    Architecture("OLMo-2-7B", "Olmo2Config", _sizes(4096, 11008, 32, 32)),
    # ibm-granite/granite-3.0-8b-base
    Architecture("Granite-3-8B", "GraniteConfig", _sizes(4096, 12800, 32, 8, attention_multiplier=0.0078125)),
    # bigcode/starcoder2-7b
    Architecture("StarCoder2-7B", "Starcoder2Config", _sizes(4608, 18432, 36, 4, sliding_window=4096)),
    # EleutherAI/gpt-neox-20b
    Architecture(
        "GPT-NeoX-20B",
        "GPTNeoXConfig",
        {key: value for key, value in _sizes(6144, 24576, 64, 64).items() if key != "num_key_value_heads"},
    ),
    # tiiuae/falcon-7b: one KV head for 71
    Architecture(
        "Falcon-7B",
        "FalconConfig",
        {"hidden_size": 4544, "num_hidden_layers": LAYERS, "num_attention_heads": 71}
        | {"multi_query": True, "parallel_attn": True, "bias": False, "alibi": False},
    ),
    # openai-community/gpt2-xl
    Architecture("GPT-2 XL", "GPT2Config", {"n_embd": 1600, "n_layer": LAYERS, "n_head": 25, "n_positions": 8192}),
    # bigscience/bloom-7b1: ALiBi
    Architecture(
        "BLOOM-7B", "BloomConfig", {"hidden_size": 4096, "n_layer": LAYERS, "n_head": 32}, "eager", needs_mask=True
    ),
    # deepseek-ai/DeepSeek-V2-Lite, its dense layer twice: keys of 192 columns and values of 128
    Architecture(
        "DeepSeek-V2-Lite",
        "DeepseekV2Config",
        _sizes(2048, 10944, 16, 16, kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=128, qk_rope_head_dim=64)
        | {"v_head_dim": 128, "first_k_dense_replace": LAYERS, "n_routed_experts": 64, "moe_intermediate_size": 1408},
    ),
    # openai/gpt-oss-20b: sinks, a window of 128 keys, and four of 32 experts
    Architecture(
        "gpt-oss-20b",
        "GptOssConfig",
        _sizes(2880, 2880, 64, 8, head_dim=64, sliding_window=128, num_local_experts=32, num_experts_per_tok=4)
        | {"layer_types": _ONE_OF_EACH},
        attention="eager",
        routed=True,
    ),
)


def find_architectures(names: str) -> tuple[Architecture, ...]:
    """Those whose names are given, separated by commas; all where ``names`` is empty.

    Raises:
        UnknownArchitectureError: one is not in the catalogue.
    """
    known = {architecture.name.lower(): architecture for architecture in CATALOGUE}
    chosen = []
    for name in (part.strip() for part in names.split(",") if part.strip()):
        if name.lower() not in known:
            raise UnknownArchitectureError(name, [architecture.name for architecture in CATALOGUE])
        chosen.append(known[name.lower()])
    return tuple(chosen) or CATALOGUE
