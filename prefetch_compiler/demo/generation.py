"""One greedy answer through Hugging Face ``generate``: static cache, eager or compiled with a named backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

INDUCTOR = "inductor"
KVPREFETCH = "kvprefetch"


@dataclass(frozen=True)
class Prompt:
    """Token ids and padding mask as ``generate`` takes them, each (1, tokens)."""

    text: str
    inputs: dict[str, torch.Tensor]

    @property
    def length(self) -> int:
        """Tokens."""
        return int(self.inputs["input_ids"].shape[1])


@dataclass(frozen=True)
class DecodeSettings:
    """How far to decode.

    Attributes:
        max_new_tokens: tokens to generate, the one from the prefill among them.
        capacity: keys that the static cache has room for.
        min_new_tokens: go on past an end-of-sequence token until so many.
    """

    max_new_tokens: int
    capacity: int
    min_new_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """New tokens only. ``logits`` holds one (vocabulary,) float32 tensor per token where they were asked for."""

    tokens: list[int]
    text: str
    logits: list[torch.Tensor] = field(default_factory=list, repr=False)


def encode_prompt(tokenizer: Any, text: str, device: torch.device) -> Prompt:
    """The prompt as the model was trained to see it: in its chat template, where it has one."""
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": text}]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        encoded = tokenizer(text, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    return Prompt(text, {name: encoded[name].to(device) for name in names})


def answer(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    settings: DecodeSettings,
    backend: str | None = None,
    on_token: Callable[[], None] | None = None,
    keep_logits: bool = False,
) -> Answer:
    """Decode greedily into a static cache; with ``backend`` None every step runs eagerly."""
    with torch.inference_mode(False), torch.no_grad():
        output = model.generate(
            **prompt.inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=settings.min_new_tokens,
            cache_implementation="static",
            max_cache_len=settings.capacity,
            streamer=None if on_token is None else _TokenCounter(on_token),
            return_dict_in_generate=True,
            output_logits=keep_logits,
            **_compile_arguments(backend),
        )
    tokens = output.sequences[0, prompt.length :].tolist()
    logits = [row[0].float().cpu() for row in output.logits] if keep_logits else []
    return Answer(tokens, tokenizer.decode(tokens, skip_special_tokens=True).strip(), logits)


def _compile_arguments(backend: str | None) -> dict[str, Any]:
    if backend is None:
        return {"disable_compile": True}
    from transformers import CompileConfig

    config = CompileConfig(backend=backend)
    config._compile_all_devices = True  # generate() compiles on the CPU only when asked like this
    return {"compile_config": config}


class _TokenCounter:
    """A streamer that looks at no token (reading one would wait for the GPU) and only counts them."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._on_token()
        self._prompt_seen = True

    def end(self) -> None:
        pass
