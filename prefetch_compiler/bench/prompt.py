"""Real text for real models: a public-domain passage, repeated to the length that a case asks for."""

from __future__ import annotations

from typing import Any

import torch

# Lewis Carroll, Alice's Adventures in Wonderland (1865), chapter I.
PASSAGE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or "
    "twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, 'and "
    "what is the use of a book,' thought Alice 'without pictures or conversations?' So she was considering in her own "
    "mind (as well as she could, for the hot day made her feel very sleepy and stupid), whether the pleasure of making "
    "a daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a White Rabbit with "
    "pink eyes ran close by her. There was nothing so very remarkable in that; nor did Alice think it so very much out "
    "of the way to hear the Rabbit say to itself, 'Oh dear! Oh dear! I shall be late!' "
)


def prompt_tokens(tokenizer: Any, batch: int, length: int, device: torch.device) -> torch.Tensor:
    """``length`` tokens of the passage for each sequence, int64 (batch, length). Sequence i starts i tokens later, so
    that no two are the same."""
    tokens = torch.tensor(tokenizer(PASSAGE)["input_ids"], device=device)
    needed = length + batch
    tiled = tokens.repeat(needed // tokens.numel() + 1)
    return torch.stack([tiled[start : start + length] for start in range(batch)])
