"""Quantised caches of libraries, decoding greedily as they do in eager mode: the same tokens, and what is lowered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prefetch_compiler.report import SiteReport, collect_reports
from prefetch_compiler.spec import ScaleGranularity

from .golden.graph import DEVICE
from .uncompiled import graphs_run_uncompiled

BATCH, HEADS, KV_HEADS, CAPACITY, DIM, PROMPT, STEPS = 2, 4, 2, 32, 16, 12, 8
HIDDEN, VOCABULARY = HEADS * DIM, 32

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Int8Layer(nn.Module):
    """The int8 cache of torchao's Llama example: a scale for each token of a head, and what is new as it was before."""

    def __init__(self, quantise: Any) -> None:
        super().__init__()
        self.quantise = quantise
        for name in ("k_cache", "v_cache"):
            shape = (BATCH, KV_HEADS, CAPACITY)
            self.register_buffer(name, torch.zeros(*shape, DIM, dtype=torch.int8))
            self.register_buffer(f"{name}_scale", torch.ones(*shape, 1, dtype=torch.bfloat16))

    def update(self, name: str, position: Tensor, states: Tensor) -> Tensor:
        cache, scales = getattr(self, name), getattr(self, f"{name}_scale")
        numbers, scale = self.quantise(states)
        cache[:, :, position] = numbers
        scales[:, :, position] = scale.reshape(*numbers.shape[:-1], 1)
        dequantised = cache * scales
        dequantised[:, :, position] = states
        return dequantised


class Int8Model(nn.Module):
    """Two layers of attention over such caches, as torchao's example writes it, between an embedding and logits."""

    def __init__(self, quantise: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(CAPACITY, HIDDEN)
        self.projections = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN + 2 * KV_HEADS * DIM) for _ in range(2))
        self.caches = nn.ModuleList(Int8Layer(quantise) for _ in range(2))
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        causal = torch.ones(CAPACITY, CAPACITY, dtype=torch.bool, device=tokens.device).tril()
        mask = causal[None, None, position]
        x = self.embedding(tokens) + self.positions(position)
        for projection, cache in zip(self.projections, self.caches, strict=True):
            split = projection(x).split([HIDDEN, KV_HEADS * DIM, KV_HEADS * DIM], dim=-1)
            q, k, v = (part.unflatten(-1, (-1, DIM)).transpose(1, 2) for part in split)
            k, v = cache.update("k_cache", position, k), cache.update("v_cache", position, v)
            k, v = (states.repeat_interleave(HEADS // KV_HEADS, dim=1) for states in (k, v))
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + y.transpose(1, 2).flatten(2)
        return self.head(x)


def test_int8_cache_of_torchao_is_read_as_it_is_stored() -> None:
    quantisers = pytest.importorskip("torchao.quantization.utils")
    quantise = getattr(quantisers, "_quantize_activation_per_token_absmax", None)
    if quantise is None:
        quantise = quantisers.quantize_activation_per_token_absmax
    model = Int8Model(quantise).to(DEVICE, torch.bfloat16).eval()
    prompt = torch.randint(VOCABULARY, (BATCH, PROMPT), device=DEVICE)

    def decode(step: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        for buffer in model.buffers():
            buffer.zero_()
        tokens, logits = [model(prompt, torch.arange(PROMPT, device=DEVICE))[:, -1:].argmax(-1)], []
        for at in range(PROMPT, PROMPT + STEPS):
            logits.append(step(tokens[-1], torch.tensor([at], device=DEVICE)))
            tokens.append(logits[-1].argmax(-1))
        return torch.cat(tokens, 1), torch.cat(logits, 1), [buffer.clone() for buffer in model.caches[0].buffers()]

    with torch.no_grad():
        tokens, logits, cached = decode(model)
        with graphs_run_uncompiled(), collect_reports() as report:
            compiled_tokens, compiled_logits, compiled_cached = decode(torch.compile(model, backend="kvprefetch"))
    assert torch.equal(compiled_tokens, tokens)
    torch.testing.assert_close(compiled_logits, logits, rtol=0.05, atol=0.05)
    assert all(map(torch.equal, compiled_cached, cached))  # of the first layer, before which no attention is
    assert len(report.lowered) == len(report.sites) == 2
    for site in report.sites:
        cache = None if site.spec is None else site.spec.cache
        assert cache is not None and cache.dtype is torch.int8
        assert cache.key_scales is cache.value_scales is ScaleGranularity.TOKEN


def _format_of(site: SiteReport) -> torch.dtype | None:
    return None if site.spec is None or site.spec.cache is None else site.spec.cache.dtype


def _tiny_llama() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16, attn_implementation="sdpa")
    return model.to(DEVICE).eval()


def _greedily(model: Any, compiled: Any, residual_length: int) -> Tensor:
    """Tokens that ``compiled`` decodes after a prompt that ``model`` puts into a cache of quanto's four bits."""
    cache_utils = pytest.importorskip("transformers.cache_utils")
    cache = cache_utils.QuantizedCache(
        backend="quanto", config=model.config, nbits=4, q_group_size=DIM, residual_length=residual_length
    )
    torch.manual_seed(1)
    prompt = torch.randint(3, VOCABULARY, (BATCH, PROMPT), device=DEVICE)
    with torch.no_grad():
        tokens = [model(input_ids=prompt, past_key_values=cache).logits[:, -1:].argmax(-1)]
        for _ in range(STEPS):
            tokens.append(compiled(input_ids=tokens[-1], past_key_values=cache).logits.argmax(-1))
    return torch.cat(tokens, 1)


def test_quantized_cache_of_transformers_is_read_as_numbers() -> None:
    """It quantises once, outside of the graphs, as documented; nothing else breaks a graph."""
    pytest.importorskip("optimum.quanto")
    layer = pytest.importorskip("transformers.cache_utils").QuantoQuantizedLayer
    model = _tiny_llama()
    expected = _greedily(model, model, residual_length=6)
    torch._dynamo.utils.counters.clear()
    with (
        mock.patch.object(layer, "_quantize", torch.compiler.disable(layer._quantize)),
        graphs_run_uncompiled(),
        collect_reports() as report,
    ):
        actual = _greedily(model, torch.compile(model, backend="kvprefetch"), residual_length=6)
    assert torch.equal(actual, expected)
    assert all("torch.compiler.disable" in reason for reason in torch._dynamo.utils.counters["graph_break"])
    assert report.sites and len(report.lowered) == len(report.sites)
    # All but that of the step that quantises, in which a break stands before the attention.
    assert sum(_format_of(site) is torch.uint8 for site in report.sites) >= len(report.sites) - 1
