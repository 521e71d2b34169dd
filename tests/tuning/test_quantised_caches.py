"""Tuning of quantised caches: their keys, their template, and verification that trusts no scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from prefetch_compiler.templates.manifest import LATENT, QUANTISED, SPLIT_KV
from torch import Tensor

from prefetch_compiler.config import KernelConfig, OperandOrder
from prefetch_compiler.database.key import Alignment, Feature, MaskClass, TuningKey, key_of, parse_key
from prefetch_compiler.database.template_hash import hash_for
from prefetch_compiler.device import REFERENCE_DEVICES, profile
from prefetch_compiler.lower.launch import launch_kernels
from prefetch_compiler.lower.specialise import DecodeTensors
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.spec import PACKED_FORMATS, ScaleGranularity, Storage
from prefetch_compiler.tuning.caches import quantised_key
from prefetch_compiler.tuning.distributions import SearchSpace
from prefetch_compiler.tuning.errors import InvalidCacheError, WrongResultError
from prefetch_compiler.tuning.keys_wanted import keys_wanted
from prefetch_compiler.tuning.seeds import seeds_for
from prefetch_compiler.tuning.toolchain import present_toolchain
from prefetch_compiler.tuning.verification import verify

from .seeded_bugs import BOOL, DEVICE, ROWS

FORMATS = "e4m3", "e5m2", "int8", "uint8", *PACKED_FORMATS
CONFIG = KernelConfig(16, 3, 2, 2, operand_order=OperandOrder.KQ)
LLAMA = parse_key("bfloat16 32q/8kv d128 q1 b64 s4096 bhsd-tma bool")
H200 = REFERENCE_DEVICES[90]


@pytest.mark.parametrize("scales", ["head", "token", "group"])
@pytest.mark.parametrize("quantised_format", FORMATS)
def test_a_key_is_that_of_its_own_example_and_has_a_name(quantised_format: str, scales: str) -> None:
    key = quantised_key(LLAMA, quantised_format, scales)
    assert key_of(key.spec()) == key == parse_key(key.name)
    assert key.spec().capacity_bytes < LLAMA.spec().capacity_bytes
    assert (Feature.KEY_TOKEN_SCALES in key.features) is (scales == "token")
    assert (Feature.VALUE_ZEROS in key.features) is quantised_format.startswith("uint")
    assert (Feature.KEY_GROUPS in key.features) is (scales == "group")
    assert (key.layout, key.alignment) == (LLAMA.layout, Alignment.TMA)
    assert QUANTISED.refusal(key.spec()) is None
    assert SPLIT_KV.refusal(key.spec()) == "a quantised cache"
    assert QUANTISED.refusal(LLAMA.spec()) == "a cache that is not quantised"


@pytest.mark.parametrize("alignment", list(Alignment))
def test_every_alignment_has_an_example_that_the_template_takes(alignment: Alignment) -> None:
    key = replace(quantised_key(LLAMA, "e4m3", "head"), alignment=alignment)
    assert key_of(key.spec()) == key
    assert QUANTISED.refusal(key.spec()) is None


def test_one_scale_for_a_tensor_or_none_shares_the_key_of_one_for_each_head() -> None:
    spec = quantised_key(LLAMA, "int8", "head").spec()
    assert spec.cache is not None
    for granularity in (ScaleGranularity.NONE, ScaleGranularity.TENSOR):
        other = replace(spec, cache=replace(spec.cache, key_scales=granularity, value_scales=granularity))
        assert key_of(other) == key_of(spec)


def test_rows_of_one_byte_an_element_may_be_less_aligned() -> None:
    key = parse_key("bfloat16 8q/8kv d40 q1 b1 s512 bhsd-tma bool")
    assert quantised_key(key, "e4m3", "head").alignment is Alignment.NONE


@pytest.mark.parametrize(
    "name",
    [
        "bfloat16/float4 8q/8kv d64 q1 b1 s512 bhsd-tma bool",
        "bfloat16 8q/8kv d64 q1 b1 s512 bhsd-tma bool key_token_scales",
        "bfloat16 8q/8kv d64 q1 b1 s512 bhsd-tma bool value_zeros",
        "bfloat16/uint8 8q/8kv d64 q1 b1 s512 bhsd-tma bool value_minima value_zeros",
        "bfloat16/uint8 8q/8kv d64 q1 b1 s512 bhsd-tma bool key_groups key_runs",
        "bfloat16/int8 8q/8kv d64 q1 b1 s512 bhsd-tma bool key_runs key_token_scales",
        "bfloat16/int8 8q/8kv d64 q1 b1 s512 bhsd-tma bool key_groups key_token_scales",
        "bfloat16/int8 8q/8kv d64 q1 b1 s512 bhsd-tma lengths key_groups page16",
    ],
)
def test_a_name_of_no_quantised_cache_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="names no tuning key"):
        parse_key(name)


def test_the_command_line_names_formats_and_scales() -> None:
    keys = keys_wanted(None, "llama-3-8b", None, [], "1", "4096", "bfloat16", "e4m3, int8", "head,token")
    assert [(key.kv_dtype, len(key.features)) for key in keys] == [
        ("float8_e4m3fn", 0), ("float8_e4m3fn", 2), ("int8", 0), ("int8", 2),
    ]  # fmt: skip
    with pytest.raises(InvalidCacheError, match="'fp7' is not one of e4m3, e5m2, int8, uint8, int4_halves"):
        keys_wanted(None, "llama-3-8b", None, [], "1", "4096", "bfloat16", "fp7")
    with pytest.raises(InvalidCacheError, match="'column' is not one of head, token, group"):
        keys_wanted(None, "llama-3-8b", None, [], "1", "4096", "bfloat16", "e4m3", "column")


def test_records_name_the_template_that_serves_them() -> None:
    toolchain = present_toolchain(measured=False)
    quantised = quantised_key(LLAMA, "e4m3", "head")
    latents = parse_key("bfloat16 128q/1kv d512 q1 b16 s8192 bhsd-tma bool rope64")
    plain, theirs, of_latents = (toolchain(key, None) for key in (LLAMA, quantised, latents))
    assert (plain.template, plain.template_hash) == (SPLIT_KV.name, hash_for(SPLIT_KV, LLAMA, None))
    assert (theirs.template, theirs.template_hash) == (QUANTISED.name, hash_for(QUANTISED, quantised, None))
    assert (of_latents.template, of_latents.template_hash) == (LATENT.name, hash_for(LATENT, latents, None))
    assert replace(theirs, template=plain.template, template_hash=plain.template_hash) == plain


def test_the_search_space_holds_what_the_template_takes_and_little_else() -> None:
    key = quantised_key(LLAMA, "e4m3", "token")
    seeds = seeds_for(key, H200)
    space = SearchSpace(key, H200, [seed.config for seed in seeds])
    assert all(why_inadmissible(key.spec(), seed.config, H200) is None for seed in seeds)
    assert space.holds(seeds[0].config)
    assert space.distributions["operand_order"].choices == ("kq",)
    assert space.distributions["merge"].choices == ("separate",)
    assert space.distributions["load_path"].choices == ("pointer", "tma")


RIGHT: dict[str, tuple[TuningKey, KernelConfig]] = {
    "rows uint4 groups, minima": (
        replace(
            quantised_key(replace(BOOL, kv_heads=1, head_dim=64, value_dim=64), "uint4_halves", "group"),
            features=(Feature.KEY_GROUPS, Feature.KEY_MINIMA, Feature.VALUE_GROUPS, Feature.VALUE_MINIMA),
        ),
        replace(CONFIG, num_splits=1),
    ),
    "rows e5m2 token": (quantised_key(replace(ROWS, kv_heads=1), "e5m2", "token"), replace(CONFIG, num_splits=1)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_accepted(name: str) -> None:
    key, config = RIGHT[name]
    # The example's rows of 24 bytes are no multiple of 16.
    key = replace(key, value_dim=32, alignment=Alignment.TMA)
    assert why_inadmissible(key.spec(), config, profile(DEVICE)) is None
    assert 0 < verify(key, config, 1, DEVICE) <= 1


def without(name: str) -> Callable[[DecodeTensors], DecodeTensors]:
    return lambda tensors: replace(tensors, **{name: None})


def _shifted(scale: Tensor | None) -> Tensor | None:
    """Each token's scale is its neighbour's."""
    return None if scale is None else scale.roll(1, 2).nan_to_num(1.0)


WRONG: dict[str, Callable[[DecodeTensors], DecodeTensors]] = {
    "K's scales are ignored": without("k_scale"),
    "K's scales are a token late": lambda tensors: replace(tensors, k_scale=_shifted(tensors.k_scale)),
    "V's scales are a token late": lambda tensors: replace(tensors, v_scale=_shifted(tensors.v_scale)),
    "e4m3 is taken for e5m2": lambda tensors: replace(
        tensors, k=tensors.k.view(torch.float8_e5m2), v=tensors.v.view(torch.float8_e5m2)
    ),
}


WRONG_NIBBLES: dict[str, Callable[[DecodeTensors], DecodeTensors]] = {
    "halves are taken for neighbours": lambda tensors: replace(tensors, storage=Storage(packing="uint4_interleaved")),
    "unsigned numbers are taken for signed ones": lambda tensors: replace(
        tensors, storage=Storage(packing="int4_halves")
    ),
    "all columns have the scales of the first group": lambda tensors: replace(
        tensors, v_scale=None if tensors.v_scale is None else tensors.v_scale[..., :1].expand(tensors.v_scale.shape)
    ),
}


@pytest.mark.parametrize("name", WRONG_NIBBLES)
def test_wrong_nibbles_and_groups_are_rejected(name: str) -> None:
    key = quantised_key(replace(BOOL, kv_heads=1, head_dim=64, value_dim=64), "uint4_halves", "group")
    _assert_rejected(WRONG_NIBBLES[name], replace(key, mask=MaskClass.BOOL))


WRONG_ZEROS: dict[str, Callable[[DecodeTensors], DecodeTensors]] = {
    "K's zeros are ignored": without("k_zero"),
    "K's zeros are a token late": lambda tensors: replace(tensors, k_zero=_shifted(tensors.k_zero)),
    "V's zeros are a token late": lambda tensors: replace(tensors, v_zero=_shifted(tensors.v_zero)),
    "V's zeros are taken for minima": lambda tensors: replace(tensors, storage=Storage(value_minima=True)),
    "uint8 is taken for int8": lambda tensors: replace(
        tensors, k=tensors.k.view(torch.int8), v=tensors.v.view(torch.int8)
    ),
}


@pytest.mark.parametrize("name", WRONG_ZEROS)
def test_wrong_zeros_are_rejected(name: str) -> None:
    key = quantised_key(replace(BOOL, kv_heads=1), "uint8", "token")
    _assert_rejected(WRONG_ZEROS[name], replace(key, value_dim=16, alignment=Alignment.TMA, mask=MaskClass.BOOL))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_rejected(name: str) -> None:
    key = quantised_key(replace(BOOL, kv_heads=1), "e4m3", "token")
    _assert_rejected(WRONG[name], replace(key, value_dim=16, alignment=Alignment.TMA, mask=MaskClass.BOOL))


def _assert_rejected(change: Callable[[DecodeTensors], DecodeTensors], key: TuningKey) -> None:
    config = replace(CONFIG, num_splits=1)

    def launch(
        tensors: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None, config: KernelConfig
    ) -> None:
        launch_kernels(change(tensors), is_causal=is_causal, scale=scale, softcap=softcap, config=config)

    with pytest.raises(WrongResultError):
        verify(key, config, 1, DEVICE, launch)
