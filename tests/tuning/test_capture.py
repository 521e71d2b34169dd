"""Capture tells the keys that a real compile looks up; it computes nothing and needs neither weights nor a GPU."""

from __future__ import annotations

import copy
import os
import resource
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from prefetch_compiler.database.key import parse_key
from prefetch_compiler.demo.errors import CapacityError, ModelNotLoadedError, UnknownDtypeError
from prefetch_compiler.tracing.errors import NoDecoderError, NotTraceableError
from prefetch_compiler.tracing.layer_cut import KeptLayer, cut_layers
from prefetch_compiler.tuning.capture import capture, capture_keys, capture_module
from prefetch_compiler.tuning.capture_errors import NothingCapturedError

from .tiny_models import BATCH, CAPACITY, CONFIGS, HELD, explained_keys, transformers

# A real compile takes 5 to 10 s. Gemma 3 has both kinds of layers; every model with KVPREFETCH_ALL_MODELS=1.
COMPILED = sorted(CONFIGS) if os.environ.get("KVPREFETCH_ALL_MODELS") == "1" else ["gemma3"]
GIB_IN_KIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models this small have nothing for a second thread to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", COMPILED)
def test_a_static_cache_has_the_keys_of_a_real_compile(name: str) -> None:
    found = capture(CONFIGS[name], [BATCH], [CAPACITY], ["float32"])
    assert {site.key for site in found.sites} == explained_keys(name, "static", HELD, "cpu", torch.float32)
    assert found.left == []


def test_a_growing_cache_has_the_keys_of_a_real_compile() -> None:
    found = capture(CONFIGS["gpt2"], [BATCH], [CAPACITY], ["float32"], cache="dynamic")
    assert {site.key for site in found.sites} == explained_keys("gpt2", "dynamic", HELD, "cpu", torch.float32)
    assert all(site.key.name.endswith("growing") for site in found.sites)


def test_every_point_is_captured_once() -> None:
    points = []
    found = capture(CONFIGS["gpt2"], [1, 5, 8], [48], ["float16", "bfloat16"], done=lambda: points.append(None))
    assert {site.key.name for site in found.sites} == {
        f"{dtype} 2q/2kv d16 q1 b{batch} s64 bhsd-tma bool" for dtype in ("float16", "bfloat16") for batch in (1, 8)
    }
    assert len(points) == 6


def seventy_billion() -> Any:
    return transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=128256,
    )  # fmt: skip


def test_a_model_of_70_billion_parameters_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = capture(seventy_billion(), [64], [131072])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert [(site.key.name, site.layers) for site in found.sites] == [
        ("bfloat16 64q/8kv d128 q1 b64 s131072 bhsd-tma bool", 80)
    ]
    assert grown < GIB_IN_KIB  # two of its layers have 3.4 GiB, and the cache 32 GiB a layer


def test_one_layer_of_each_kind_stands_for_all() -> None:
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    config = copy.deepcopy(CONFIGS["gemma3"])
    config.layer_types, config.num_hidden_layers = kinds, 6
    # Of 9 keys, so that a window of 8 is never seen full, and the step is traced once.
    cut, whole = (capture(config, [2], [9], all_layers=all_layers) for all_layers in (False, True))
    assert cut.sites == whole.sites
    assert [(site.layers, site.layer) for site in cut.sites] == [
        (4, "model.layers.0.self_attn"),
        (2, "model.layers.2.self_attn"),
    ]


def test_the_layers_that_are_kept_count_for_all() -> None:
    gemma = transformers.Gemma3TextConfig(num_hidden_layers=26)
    config, kept = cut_layers(gemma)
    full = (5, 11, 17, 23)
    assert kept == [
        KeptLayer((0,)),
        KeptLayer(tuple(layer for layer in range(1, 26) if layer not in full)),
        KeptLayer(full),
    ]
    assert config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 3
    assert gemma.num_hidden_layers == len(gemma.layer_types) == 26
    assert cut_layers(transformers.GPT2Config(n_layer=48))[1] == [KeptLayer((0,)), KeptLayer(tuple(range(1, 48)))]
    assert cut_layers(transformers.GPT2Config(n_layer=1))[1] == [KeptLayer((0,))]


def test_layers_whose_only_difference_lies_in_an_unknown_list_are_all_kept() -> None:
    config = transformers.LlamaConfig(num_hidden_layers=4)
    config.heads_of_each_layer = [4, 4, 8, 4]
    shortened, kept = cut_layers(config)
    assert kept == [KeptLayer((0,)), KeptLayer((1, 3)), KeptLayer((2,))]
    assert shortened.heads_of_each_layer == [4, 4, 8]


def test_what_would_not_be_lowered_is_told_with_its_reason() -> None:
    config = transformers.LlamaConfig(**CONFIGS["llama"].to_diff_dict() | {"head_dim": 20})
    found = capture(config, [1], [32])
    assert found.sites == []
    assert [site.layers for site in found.left] == [1]
    assert "head_dim is 20" in found.left[0].reason


def test_a_model_with_nothing_to_tune_is_an_error_where_keys_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefetch_compiler.demo import model_source

    config = transformers.LlamaConfig(**CONFIGS["llama"].to_diff_dict() | {"head_dim": 20})
    monkeypatch.setattr(model_source, "load_config", lambda source, trust_remote_code: config)
    with pytest.raises(NothingCapturedError, match=r"'some/model' would be lowered.*head_dim is 20"):
        capture_keys("some/model", [1], [32])


def test_bad_arguments() -> None:
    with pytest.raises(ModelNotLoadedError, match="no such folder"):
        capture("./nowhere", [1], [32])
    with pytest.raises(UnknownDtypeError, match="int3"):
        capture(CONFIGS["gpt2"], [1], [32], ["int3"])
    with pytest.raises(CapacityError, match="a capacity of 2 keys is too small: 3"):
        capture(CONFIGS["gpt2"], [1], [2])
    with pytest.raises(NoDecoderError, match="model type 'vit'"):
        capture(transformers.ViTConfig(), [1], [32])


class Decoder(torch.nn.Module):
    """A decode step by hand: grouped-query attention on a cache that it writes to."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.q = torch.nn.Linear(64, 64, device=device, dtype=torch.float16)
        self.register_buffer("keys", torch.zeros(2, 2, 128, 16, device=device, dtype=torch.float16))
        self.register_buffer("values", torch.zeros(2, 2, 128, 16, device=device, dtype=torch.float16))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        self.keys.index_copy_(2, position, x.view(2, 1, 4, 16).transpose(1, 2)[:, :2])
        q = self.q(x).view(2, 1, 4, 16).transpose(1, 2)
        return F.scaled_dot_product_attention(q, self.keys, self.values, attn_mask=mask, enable_gqa=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_any_module_can_be_captured_and_is_not_run(device: str) -> None:
    module = Decoder(device).eval()
    x = torch.ones(2, 1, 64, device=device, dtype=torch.float16)
    mask = torch.ones(2, 1, 1, 128, device=device, dtype=torch.bool)
    found = capture_module(module, x, mask, torch.tensor([3], device=device))
    assert [(site.key.name, site.layers, site.model) for site in found.sites] == [
        ("float16 4q/2kv d16 q1 b2 s128 bhsd-tma bool", 1, "Decoder")
    ]
    if device == "cpu":
        assert not module.keys.any()
        assert type(module.q.weight) is torch.nn.Parameter


def test_functions_count_their_sites_and_leave_prefill_out() -> None:
    def two_sites(q: torch.Tensor, prompt: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        once = F.scaled_dot_product_attention(q, k, k)
        twice = F.scaled_dot_product_attention(once, k, k)
        return twice, F.scaled_dot_product_attention(prompt, k, k, is_causal=True)

    q, prompt, k = (torch.empty(1, 2, length, 32, device="meta") for length in (1, 64, 64))
    found = capture_module(two_sites, q, prompt, k, name="by hand")
    assert [(site.key, site.layers, site.model) for site in found.sites] == [
        (parse_key("float32 2q/2kv d32 q1 b1 s64 bhsd-tma none"), 2, "by hand")
    ]
    assert found.left == []


def test_what_cannot_be_traced_is_one_error() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such thing")

    with pytest.raises(NotTraceableError, match=r"'broken' cannot be traced.*no such thing"):
        capture_module(broken, torch.ones(1))
