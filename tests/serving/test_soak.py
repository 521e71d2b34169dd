"""The soak of tests/gpu/soak.py, for a moment and with a tiny model: it passes, and says what is wrong where something
is."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler.lower import ops

from ..contract.uncompiled import graphs_run_uncompiled

transformers = pytest.importorskip("transformers")

from ..gpu.soak import Decode, Soak, Summary  # noqa: E402

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCABULARY = 32


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(DEVICE).eval()


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    with graphs_run_uncompiled():
        yield
    torch._dynamo.reset()


def text(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))


def soaked(model: Any, decode: Decode) -> Summary:
    return Soak(model, text, decode, batches=(1, 2), capacities=(8,), seed=4).run(0.0)


def test_a_moment_of_it(model: Any) -> None:
    summary = soaked(model, torch.compile(model, backend="kvprefetch", dynamic=False))
    assert summary.problems == []
    assert summary.conversations == 4
    assert summary.filled_caches > 0
    assert summary.checked_tokens >= summary.steps > 0
    assert summary.sites == summary.graphs > 0
    assert ops._failed_configs == {}


def test_a_model_that_says_something_else_is_found(model: Any) -> None:
    def decode(**inputs: Any) -> Any:
        return SimpleNamespace(logits=model(**inputs).logits.roll(1, -1))

    problems = soaked(model, decode).problems
    assert any("tokens are not eager's" in problem for problem in problems)


def test_a_lost_cache_write_is_found(model: Any) -> None:
    def decode(**inputs: Any) -> Any:
        result = model(**inputs)
        for layer in inputs["past_key_values"].layers:
            layer.keys[:, :, int(layer.cumulative_length) - 1] = 0
        return result

    problems = soaked(model, decode).problems
    assert any("tokens are not eager's" in problem for problem in problems)
