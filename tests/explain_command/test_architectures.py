"""Models of every kind get an answer: their sites, or what is wrong and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prefetch_compiler.config import KernelConfig
from prefetch_compiler.demo.cache_kind import CacheKind
from prefetch_compiler.demo.errors import CapacityError, ModelNotLoadedError, RemoteCodeError, UnknownDtypeError
from prefetch_compiler.errors import InvalidOptionError
from prefetch_compiler.explain_command.explained import ExplainedModel, ExplainRequest, _remarks, explain_model
from prefetch_compiler.report import Report, Verdict
from prefetch_compiler.tracing.decoders import FakeDecode
from prefetch_compiler.tracing.errors import AttentionImplementationError, NoDecoderError, SeveralTextConfigsError
from prefetch_compiler.tracing.fake_decode import TracedDecode
from prefetch_compiler.tuning.capture import capture

transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = transformers.LlamaConfig(**TINY)
WHISPER = transformers.WhisperConfig(
    vocab_size=32, d_model=64, encoder_layers=1, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=150, max_target_positions=48, num_mel_bins=8,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None,
)  # fmt: skip
T5 = transformers.T5Config(
    vocab_size=32, d_model=64, d_kv=16, d_ff=32, num_layers=2, num_decoder_layers=3, num_heads=4,
    decoder_start_token_id=0,
)  # fmt: skip
GEMMA3 = transformers.Gemma3Config(
    text_config=TINY
    | {"head_dim": 24, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8},
    vision_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
)


def explained(model: Any, **request: Any) -> ExplainedModel:
    return explain_model(ExplainRequest(**{"model": model, "gpu": "H200", **request}))


def layers_of(found: ExplainedModel) -> list[str]:
    return [site.layer for site in found.report.sites]


def test_an_encoder_decoder_attends_to_itself_and_to_its_encoder() -> None:
    found = explained(WHISPER)
    names = [f"model.decoder.layers.{layer}.{kind}" for layer in range(4) for kind in ("self_attn", "encoder_attn")]
    assert layers_of(found) == names
    assert found.decode.architecture == "WhisperForConditionalGeneration"
    assert (found.step.capacity, found.step.held) == (48, 47)  # no more positions than the decoder has
    cross, itself = found.report.sites[1], found.report.sites[0]
    assert cross.spec is not None and itself.spec is not None
    assert (itself.spec.kv_len, itself.keys_read) == (48, 48)
    assert (cross.spec.kv_len, cross.keys_read) == (150, 150)


def test_an_encoder_decoder_that_is_deeper_on_one_side() -> None:
    found = explained(T5, capacity=40, held=20)
    assert len(found.report.sites) == 2 * 3
    assert "EncDecAttention" in layers_of(found)[1]
    spec = found.report.sites[0].spec
    assert spec is not None
    assert (spec.query_heads, spec.head_dim, spec.scale) == (4, 16, 1.0)


def test_a_model_that_also_sees_is_explained_by_its_language_model() -> None:
    found = explained(GEMMA3, capacity=64, held=20)
    assert found.decode.architecture == "Gemma3ForCausalLM"
    read = [(site.spec.kv_len, site.keys_read) for site in found.report.sites if site.spec is not None]
    assert read == [(8, 8), (64, 21)] * 2


def test_flex_attention_is_named_with_the_ways_out() -> None:
    found = explained(LLAMA, attention="flex_attention")
    assert found.report.sites == []
    (remark,) = found.remarks
    assert "prefetch_compiler.explain(model, *inputs)" in remark
    assert remark.endswith("set attn_implementation='sdpa'")


def test_an_implementation_with_kernels_of_its_own_is_named_with_the_way_out() -> None:
    traced = TracedDecode("SomeForCausalLM", "flash_attention_2", True, (), ())
    (remark,) = _remarks(traced, FakeDecode(1, 64, 20, torch.float16, CacheKind.STATIC), Report())
    assert remark.startswith("attention implementation 'flash_attention_2' calls kernels of its own")
    assert remark.endswith("set attn_implementation='sdpa'")


@pytest.mark.parametrize(("has_sdpa", "way_out"), [(True, "set attn_implementation='sdpa'"), (False, "has no other")])
def test_eager_attention_that_is_not_recognised_is_named(has_sdpa: bool, way_out: str) -> None:
    traced = TracedDecode("SomeForCausalLM", "eager", has_sdpa, (), ())
    (remark,) = _remarks(traced, FakeDecode(1, 64, 20, torch.float16, CacheKind.STATIC), Report())
    assert "'eager'" in remark
    assert way_out in remark


def test_a_refused_site_is_untouched_and_names_the_way_out() -> None:
    config = transformers.LlamaConfig(**TINY | {"head_dim": 20})
    found = explained(config)
    assert [site.verdict for site in found.report.sites] == [Verdict.UNTOUCHED] * 4
    assert all("head_dim is 20" in site.reason and "pad" in site.reason for site in found.report.sites)
    assert found.report.sites[0].config is None


def test_a_step_of_many_tokens_is_prefill() -> None:
    found = explained(LLAMA, q_len=17)
    assert not any(site.decode for site in found.report.sites)
    assert all("decode at most 16 at a time" in site.reason for site in found.report.sites)
    assert found.remarks == ()


def test_a_gpu_that_runs_no_configuration_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefetch_compiler.errors import InadmissibleConfigError
    from prefetch_compiler.explain_command import explained as module

    def refuse(*_: Any) -> Any:
        raise InadmissibleConfigError(KernelConfig(16, 1, 4, 1).encode(), "too small a GPU")

    monkeypatch.setattr(module, "select", refuse)
    found = explained(LLAMA)
    assert [(site.verdict, site.config) for site in found.report.sites] == [(Verdict.UNTOUCHED, None)] * 4
    assert "too small a GPU" in found.report.sites[0].reason


def test_an_attention_implementation_that_a_model_does_not_have() -> None:
    bloom = transformers.BloomConfig(vocab_size=32, hidden_size=64, n_layer=1, n_head=4)
    with pytest.raises(AttentionImplementationError, match=r"'sdpa'.*pass --attn-implementation eager"):
        explained(bloom, attention="sdpa")


def test_models_that_do_not_decode() -> None:
    with pytest.raises(NoDecoderError, match="model type 'vit'"):
        explained(transformers.ViTConfig())


class Wrapper(transformers.PreTrainedConfig):  # type: ignore[misc]
    """A model that holds others, such as a thinker and a talker."""

    model_type = "wrapper"


def wrapper(**sections: Any) -> Wrapper:
    config = Wrapper()  # which transformers checks before it has sections
    for name, section in sections.items():
        setattr(config, name, section)
    return config


@pytest.mark.parametrize("names", [("decoder", "text_config"), ("thinker_config", "talker_config")])
def test_a_model_with_several_text_configs_is_asked_for_one(names: tuple[str, str]) -> None:
    with pytest.raises(SeveralTextConfigsError, match=rf"\({', '.join(names)}\): save the one that you mean"):
        explained(wrapper(**dict.fromkeys(names, LLAMA)))


def test_the_one_section_that_generates_text_decodes() -> None:
    found = explained(wrapper(thinker_config=LLAMA, vision_config=transformers.ViTConfig()))
    assert found.decode.architecture == "LlamaForCausalLM"


def test_a_config_that_transformers_finds_invalid_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": "wide"}))
    with pytest.raises(ModelNotLoadedError, match=r"hidden_size.*wide"):
        explained(str(tmp_path))


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"dtype": "int3"}, UnknownDtypeError, "int3"),
        ({"capacity": 32, "held": 40}, CapacityError, "a capacity of 32 keys is too small: 41"),
        ({"capacity": 32, "held": 30, "q_len": 4}, CapacityError, "34 are needed"),
        ({"cache": CacheKind.DYNAMIC, "held": 2, "q_len": 2}, InvalidOptionError, "more keys than the 2 of a step"),
        ({"model": "./nowhere"}, ModelNotLoadedError, "no such folder"),
    ],
)
def test_sizes_and_names_that_cannot_be(request_: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        explained(**{"model": LLAMA, **request_})


def test_the_dtype_is_the_one_that_the_model_was_saved_in() -> None:
    from prefetch_compiler.explain_command.explained import _dtype

    assert _dtype(None, transformers.LlamaConfig(**TINY, dtype="float16")) == torch.float16
    assert _dtype(None, transformers.LlamaConfig(**TINY, dtype="float64")) == torch.bfloat16
    assert _dtype(None, LLAMA) == torch.bfloat16
    assert _dtype("float32", LLAMA) == torch.float32


def test_a_preset_is_not_held_to_positions_that_it_does_not_tell() -> None:
    from prefetch_compiler.explain_command.explained import _positions
    from prefetch_compiler.tuning.presets import preset_config

    assert _positions("llama-3-70b", preset_config("llama-3-70b")) is None
    assert _positions("gpt2", preset_config("gpt2")) == 1024
    assert _positions(WHISPER, WHISPER) == 48


CONFIGURATION_CODE = """
from pathlib import Path
from transformers import LlamaConfig
Path({marker!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own-decoder"
"""
MODEL_CODE = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose classes are in its own folder; ``ran`` appears there when they are loaded."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps({**TINY, "model_type": "own-decoder", "auto_map": auto_map}))
    (folder / "configuration_own.py").write_text(CONFIGURATION_CODE.format(marker=str(folder / "ran")))
    (folder / "modeling_own.py").write_text(MODEL_CODE)
    return folder


def test_code_of_a_model_runs_only_where_it_is_trusted(own_code: Path) -> None:
    with pytest.raises(RemoteCodeError, match=r"own'.*would run on this machine: pass --trust-remote-code"):
        explained(str(own_code))
    assert not (own_code / "ran").exists()
    found = explained(str(own_code), trust_remote_code=True)
    assert (own_code / "ran").exists()
    assert found.decode.architecture == "OwnForCausalLM"
    assert len(found.report.lowered) == 4
    with pytest.raises(RemoteCodeError):
        capture(str(own_code), [1], [32])
    (site,) = capture(str(own_code), [1], [32], trust_remote_code=True).sites
    assert site.layers == 4
