"""Positions as a bias on the scores that grows with distance (ALiBi)."""

from __future__ import annotations

from ..zoo_model import VOCABULARY, ZooModel

FAMILY = (
    ZooModel(
        "BLOOM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
        sites=1,
        mask_covers_static_cache=True,
    ),
    ZooModel(
        "MPT",
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 64},
        sites=1,
    ),
    ZooModel(
        "Falcon, ALiBi",
        "FalconConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"alibi": True, "bos_token_id": 1, "eos_token_id": 2},
        sites=1,
        mask_covers_static_cache=True,
    ),
)
