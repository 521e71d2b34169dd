"""Whole decoders of transformers, tiny and random: one for each way in which they write decode attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY = 97
CAPACITY = 32
ENCODED_FRAMES = 20


@dataclass(frozen=True)
class ZooModel:
    """A model, and how many attention sites one decode step of it has."""

    name: str
    build: Callable[[], Any]
    sites: int

    def __str__(self) -> str:
        return self.name

    @property
    def has_encoder(self) -> bool:
        return self.name == "whisper"


_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _causal(config: Any) -> Callable[[], Any]:
    return lambda: transformers.AutoModelForCausalLM.from_config(config)


def _gemma3() -> Any:
    """Its first layer slides over 8 keys, its second sees all."""
    config = transformers.Gemma3TextConfig(
        **_COMMON,
        num_hidden_layers=2,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


def _whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=8,
        max_source_positions=ENCODED_FRAMES,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config)


_GPT2 = transformers.GPT2Config(
    vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
)
_FALCON = transformers.FalconConfig(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    multi_query=True,
    bos_token_id=1,
    eos_token_id=2,
)
_MIXTRAL = transformers.MixtralConfig(**_COMMON, num_hidden_layers=1, num_local_experts=4, num_experts_per_tok=2)
# Its first layers have no experts, and it has no others.
_DEEPSEEK = transformers.DeepseekV3Config(
    **_COMMON | {"num_key_value_heads": 4},
    num_hidden_layers=1,
    first_k_dense_replace=1,
    kv_lora_rank=32,
    q_lora_rank=32,
    qk_rope_head_dim=16,
    qk_nope_head_dim=24,
    v_head_dim=16,
)

ZOO = (
    ZooModel(
        "llama",
        _causal(transformers.LlamaConfig(**_COMMON | {"num_hidden_layers": 2, "num_key_value_heads": 2})),
        sites=2,
    ),
    ZooModel("qwen3", _causal(transformers.Qwen3Config(**_COMMON, num_hidden_layers=1, head_dim=16)), sites=1),
    ZooModel("phi3", _causal(transformers.Phi3Config(**_COMMON, num_hidden_layers=1)), sites=1),
    ZooModel("mixtral", _causal(_MIXTRAL), sites=1),
    ZooModel("gpt2", _causal(_GPT2), sites=1),
    ZooModel("falcon", _causal(_FALCON), sites=1),
    ZooModel("deepseek_v3", _causal(_DEEPSEEK), sites=1),
    ZooModel("gemma3", _gemma3, sites=2),
    ZooModel("whisper", _whisper, sites=2),
)
LLAMA = ZOO[0]


def build(zoo_model: ZooModel, dtype: torch.dtype, device: torch.device) -> Any:
    """The model with the same random weights at every call, for inference, with SDPA attention."""
    torch.manual_seed(11)
    model = zoo_model.build().to(torch.float32).eval()
    model.set_attn_implementation("sdpa")
    if zoo_model.name == "mixtral":
        model.set_experts_implementation("batched_mm")  # the default has no float64
    return model.to(device, dtype)


def encoder_input(device: torch.device, batch: int) -> Tensor:
    """Log-mel features for Whisper's encoder, which halves their length."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn((batch, 8, 2 * ENCODED_FRAMES), generator=generator).to(device)
