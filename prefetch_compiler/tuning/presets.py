"""Named models: the numbers that decide their attention, and the tuning keys that follow from them.

Each preset's numbers are those of the ``config.json`` that its comment names on the Hugging Face hub. Presets are keys
without tracing anything; that they are the keys which the compiled models look up is a test, which captures each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

from ..database.key import Alignment, Layout, MaskClass, TuningKey, bucket
from ..demo.device_choice import DTYPES
from ..demo.errors import MissingExtraError, UnknownDtypeError
from .capture_errors import UnknownPresetError


@dataclass(frozen=True)
class Preset:
    """One model's decode attention.

    Attributes:
        family: ``model_type`` of its transformers configuration.
        layers: decoder layers, of which ``sliding_layers`` see a window only.
        window: keys that a sliding layer sees, and so the most that its static cache holds; None without such layers.
        positions: learned positions, beyond which no cache goes; None where positions are computed.
    """

    family: str
    query_heads: int
    kv_heads: int
    head_dim: int
    layers: int
    window: int | None = None
    sliding_layers: int = 0
    positions: int | None = None

    def capacities(self, capacity: int) -> list[int]:
        """The capacities of the caches of its layers, for a static cache of ``capacity`` keys."""
        longest = min(capacity, self.positions or capacity)
        found = []
        if self.window is not None and self.sliding_layers:
            found.append(min(longest, self.window))
        if self.sliding_layers < self.layers:
            found.append(longest)
        return list(dict.fromkeys(found))


PRESETS: dict[str, Preset] = {
    # meta-llama/Meta-Llama-3-8B and -70B; the later Llama-3.1 models have the same heads
    "llama-3-8b": Preset("llama", 32, 8, 128, 32),
    "llama-3-70b": Preset("llama", 64, 8, 128, 80),
    # Qwen/Qwen2.5-7B, -14B and -32B
    "qwen2.5-7b": Preset("qwen2", 28, 4, 128, 28),
    "qwen2.5-14b": Preset("qwen2", 40, 8, 128, 48),
    "qwen2.5-32b": Preset("qwen2", 40, 8, 128, 64),
    # mistralai/Mistral-7B-v0.3, which has no window
    "mistral-7b": Preset("mistral", 32, 8, 128, 32),
    # google/gemma-3-1b-pt, and text_config of google/gemma-3-4b-pt, -12b-pt and -27b-pt: every sixth layer sees all
    "gemma-3-1b": Preset("gemma3_text", 4, 1, 256, 26, window=512, sliding_layers=22),
    "gemma-3-4b": Preset("gemma3_text", 8, 4, 256, 34, window=1024, sliding_layers=29),
    "gemma-3-12b": Preset("gemma3_text", 16, 8, 256, 48, window=1024, sliding_layers=40),
    "gemma-3-27b": Preset("gemma3_text", 32, 16, 128, 62, window=1024, sliding_layers=52),
    # microsoft/Phi-3-mini-4k-instruct and -128k-instruct: all layers have the window
    "phi-3-mini": Preset("phi3", 32, 32, 96, 32, window=2047, sliding_layers=32),
    "phi-3-mini-128k": Preset("phi3", 32, 32, 96, 32, window=262144, sliding_layers=32),
    # microsoft/phi-4
    "phi-4": Preset("phi3", 40, 10, 128, 40),
    # HuggingFaceTB/SmolLM2-135M, -360M and -1.7B
    "smollm2-135m": Preset("llama", 9, 3, 64, 30),
    "smollm2-360m": Preset("llama", 15, 5, 64, 32),
    "smollm2-1.7b": Preset("llama", 32, 32, 64, 24),
    # openai-community/gpt2, gpt2-medium, gpt2-large and gpt2-xl
    "gpt2": Preset("gpt2", 12, 12, 64, 12, positions=1024),
    "gpt2-medium": Preset("gpt2", 16, 16, 64, 24, positions=1024),
    "gpt2-large": Preset("gpt2", 20, 20, 64, 36, positions=1024),
    "gpt2-xl": Preset("gpt2", 25, 25, 64, 48, positions=1024),
}


def find_preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        UnknownPresetError: there is none.
    """
    if name not in PRESETS:
        raise UnknownPresetError(name, PRESETS)
    return PRESETS[name]


def preset_keys(
    name: str, batches: Sequence[int], capacities: Sequence[int], dtypes: Sequence[str] = ("bfloat16",)
) -> list[TuningKey]:
    """The keys that decoding with a Hugging Face static cache looks up, each once.

    The cache is (batch, kv_heads, capacity, head_dim) in memory; one query position; a bool mask over keys. Sliding
    layers have a cache of their own, no longer than the window.

    Raises:
        UnknownPresetError, UnknownDtypeError: ``name``, ``dtypes``.
    """
    return presets_keys([name], batches, capacities, dtypes)


def presets_keys(
    names: Iterable[str], batches: Sequence[int], capacities: Sequence[int], dtypes: Sequence[str] = ("bfloat16",)
) -> list[TuningKey]:
    """The keys of several presets, each once: models that share their heads share their keys.

    Raises:
        UnknownPresetError, UnknownDtypeError: ``names``, ``dtypes``.
    """
    presets = [find_preset(name) for name in names]
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UnknownDtypeError(dtype, DTYPES)
    found = (
        _key(preset, dtype, batch, capacity)
        for preset, dtype, batch, longest in product(presets, dtypes, batches, capacities)
        for capacity in preset.capacities(longest)
    )
    return list(dict.fromkeys(found))


def _key(preset: Preset, dtype: str, batch: int, capacity: int) -> TuningKey:
    return TuningKey(
        dtype=dtype,
        kv_dtype=dtype,
        group=preset.query_heads // preset.kv_heads,
        kv_heads=preset.kv_heads,
        head_dim=preset.head_dim,
        value_dim=preset.head_dim,
        q_len_bucket=1,
        batch_bucket=bucket(batch),
        capacity_bucket=bucket(capacity),
        layout=Layout.BHSD,
        alignment=Alignment.TMA,
        mask=MaskClass.BOOL,
    )


def preset_config(name: str) -> Any:
    """A transformers configuration with the preset's attention. What attention does not depend on, such as the
    vocabulary and the width of the MLP, is small.

    Raises:
        UnknownPresetError: there is no such preset.
        MissingExtraError: transformers is not installed.
    """
    preset = find_preset(name)
    if find_spec("transformers") is None:
        raise MissingExtraError("demo", ["transformers"])
    from transformers import AutoConfig

    common = {"vocab_size": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    width = preset.query_heads * preset.head_dim
    if preset.family == "gpt2":
        sizes = {"n_embd": width, "n_layer": preset.layers, "n_head": preset.query_heads, "n_inner": 256}
        return AutoConfig.for_model("gpt2", **common, **sizes)
    return AutoConfig.for_model(
        preset.family,
        **common,
        hidden_size=width,
        intermediate_size=256,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.query_heads,
        num_key_value_heads=preset.kv_heads,
        head_dim=preset.head_dim,
        **({"sliding_window": preset.window} if preset.family in ("phi3", "mistral", "gemma3_text") else {}),
    )
