"""Decoders that attend to what an encoder said, beside their own tokens: two attentions a layer, two caches."""

from __future__ import annotations

from typing import Any

from ..zoo_model import ENCODED_LENGTH, VOCABULARY, ZooModel

_TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_BART: dict[str, Any] = _TOKENS | {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_POSITIONS = {"max_position_embeddings": 64}
_TEXT = "AutoModelForSeq2SeqLM"

FAMILY = (
    # Biased by relative position, and not scaled.
    ZooModel(
        "T5",
        "T5Config",
        _TOKENS | {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2},
        sites=2,
        auto_class=_TEXT,
    ),
    ZooModel(
        "Whisper",
        "WhisperConfig",
        _BART | {"num_mel_bins": 8, "max_source_positions": ENCODED_LENGTH, "max_target_positions": 64},
        sites=2,
        auto_class="AutoModelForSpeechSeq2Seq",
    ),
    ZooModel("BART", "BartConfig", _BART | _POSITIONS, sites=2, auto_class=_TEXT),
    ZooModel("mBART", "MBartConfig", _BART | _POSITIONS, sites=2, auto_class=_TEXT),
    ZooModel("Pegasus", "PegasusConfig", _BART | _POSITIONS, sites=2, auto_class=_TEXT),
    ZooModel(
        "Marian", "MarianConfig", _BART | _POSITIONS | {"decoder_vocab_size": VOCABULARY}, sites=2, auto_class=_TEXT
    ),
)
