"""Hashes of our own templates: what the manifest says of features is so, and whatever can matter to a key counts."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

import pytest
from prefetch_compiler.templates.manifest import LATENT, QUANTISED, SPLIT_KV, TEMPLATES, OptionalFeature, Template

from prefetch_compiler.config import KernelConfig, Merge, Partition, PrefetchKind
from prefetch_compiler.database.kernel_source.modules import PACKAGE, Sources
from prefetch_compiler.database.kernel_source.program import Program
from prefetch_compiler.database.key import Feature, MaskClass, TuningKey, is_quantised
from prefetch_compiler.database.template_hash import hash_for, present_hash, template_hash, whole_hashes
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower.precompile import example_tensors, kernel_calls
from prefetch_compiler.select.candidates import why_stale
from prefetch_compiler.tuning.caches import quantised_key
from prefetch_compiler.tuning.toolchain import present_toolchain

from ..tuning.seeded_bugs import GPU_BUGS, SEEDED_BUGS, SeededBug
from .examples import KEY, measured

FOLDER = resources.files(PACKAGE)
PLAIN = KernelConfig(16, 2, 4, 2)
FEATURES = [
    pytest.param(template, feature, id=f"{template.name}-{feature.name}")
    for template in TEMPLATES
    for feature in template.features
]
MASKED = [replace(KEY, mask=mask, mask_dtype="float16" if "additive" in mask.value else "") for mask in MaskClass]
PAGED = [
    replace(KEY, mask=mask, features=(feature,))
    for mask in (MaskClass.LENGTHS, MaskClass.CAUSAL_LENGTHS)
    for feature in (Feature.PAGE1, Feature.PAGE64)
]
CAPPED = [replace(KEY, mask=MaskClass.LENGTHS, features=(Feature.PAGE64, Feature.SINK, Feature.SOFTCAP))]
OF_QUANTISED = {"key_token_scales", "value_token_scales", "key_zeros", "value_zeros", "unsigned", "packed"}
OF_QUANTISED |= {"key_groups", "value_groups"}
PLAIN_KEYS = [*MASKED, *PAGED, *CAPPED]
QUANTISED_KEYS = [quantised_key(key, "int8", scales) for key in PLAIN_KEYS for scales in ("head", "token")]
ZERO_KEYS = [
    quantised_key(CAPPED[0], "uint8", "token"),
    replace(QUANTISED_KEYS[0], features=(Feature.KEY_MINIMA, Feature.VALUE_ZEROS)),
    replace(QUANTISED_KEYS[0], kv_dtype="uint8"),
    replace(QUANTISED_KEYS[0], features=(Feature.KEY_GROUPS, Feature.VALUE_RUNS)),
    quantised_key(MASKED[0], "uint4_halves", "group"),
    quantised_key(MASKED[0], "int4_interleaved", "token"),
]
LATENT_KEYS = [
    replace(key, kv_heads=1, value_dim=key.head_dim, features=(Feature.ROPE64, *key.features))
    for key in (*MASKED, replace(KEY, features=(Feature.SINK, Feature.SOFTCAP)))
]
KEYS = [*PLAIN_KEYS, *QUANTISED_KEYS, *ZERO_KEYS, *LATENT_KEYS]


def template_of(key: TuningKey) -> Template:
    if key.rope_dim:
        return LATENT
    return QUANTISED if is_quantised(key) else SPLIT_KV


def parameters_of(template: Template) -> dict[str, list[str]]:
    """Of every function that its kernels reach with all features."""
    nodes = Program(Sources(FOLDER), template.entries, {}).definitions()
    return {
        name: [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        for name, node in nodes.items()
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize(("template", "feature"), FEATURES)
def test_a_features_parameters_are_its_own_and_exist(template: Template, feature: OptionalFeature) -> None:
    others = {name for one in template.features if one is not feature for name in one.absent}
    assert not others & feature.absent.keys()
    known = {name for names in parameters_of(template).values() for name in names}
    assert feature.absent.keys() <= known


@pytest.mark.parametrize(("template", "feature"), FEATURES)
def test_without_a_feature_its_parameters_are_gone(template: Template, feature: OptionalFeature) -> None:
    absent = template.absent_values(template.feature_names - {feature.name})
    left = Program(Sources(FOLDER), template.entries, absent).definitions()
    names = {one.arg for node in left.values() for one in ast.walk(node) if isinstance(one, ast.arg)}
    assert not names & feature.absent.keys()


@pytest.mark.parametrize(("template", "feature"), FEATURES)
def test_a_feature_makes_another_hash(template: Template, feature: OptionalFeature) -> None:
    everything = template.feature_names
    assert template_hash(template, everything) != template_hash(template, everything - {feature.name})


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_launches_without_a_feature_pass_what_the_manifest_says(key: TuningKey) -> None:
    key = key.at(batch=2, capacity=256)
    spec, config = key.spec(), KernelConfig(16, 2, 4, 2, merge=Merge.SEPARATE)
    calls = kernel_calls(spec, config, example_tensors(spec, config, "meta"), REFERENCE_DEVICES[90])
    assert len(calls) == 2
    template = template_of(key)
    absent = template.absent_values(template.features_of(key, PLAIN))
    for call in calls:
        passed = {**call.arguments, **call.constants}
        shared = passed.keys() & absent.keys()
        assert {name: passed[name] for name in shared} == {name: absent[name] for name in shared}


def test_each_mask_class_has_its_features() -> None:
    features = {key.mask.value: SPLIT_KV.features_of(key, PLAIN) for key in MASKED}
    masked = {"bool": {"mask"}, "additive": {"mask"}}
    masked |= {f"{mask}_rows": {"mask", "mask_by_row"} for mask in masked}
    lengths = {"lengths": {"lengths"}, "causal_lengths": {"lengths", "causal_tail"}}
    assert features == {"none": set(), "causal": {"causal"}, **lengths, **masked}
    assert [SPLIT_KV.features_of(key, PLAIN) for key in PAGED] == [
        features[key.mask.value] | {"paged"} for key in PAGED
    ]


def test_sums_in_chains_are_a_feature_of_float32() -> None:
    wide = replace(KEY, dtype="float32", kv_dtype="float32")
    assert SPLIT_KV.features_of(wide, PLAIN) == SPLIT_KV.features_of(KEY, PLAIN) | {"chains"}


@pytest.mark.parametrize("key", QUANTISED_KEYS, ids=lambda key: key.name)
def test_scales_for_each_token_are_features(key: TuningKey) -> None:
    scales = {Feature.KEY_TOKEN_SCALES, Feature.VALUE_TOKEN_SCALES}
    plain = replace(key, kv_dtype=key.dtype, features=tuple(one for one in key.features if one not in scales))
    features = {one.value for one in scales & set(key.features)}
    assert QUANTISED.features_of(key, PLAIN) == SPLIT_KV.features_of(plain, PLAIN) - {"mask_by_row"} | features


def test_zeros_and_unsigned_numbers_are_features() -> None:
    unsigned, groups = {"key_zeros", "value_zeros", "unsigned"}, {"key_groups", "value_groups"}
    of_zeros = [QUANTISED.features_of(key, PLAIN) & {*unsigned, *groups, "packed"} for key in ZERO_KEYS]
    signed = unsigned - {"unsigned"}
    assert of_zeros == [unsigned, signed, unsigned, groups, {*unsigned, *groups, "packed"}, {"packed"}]


def test_hashes_are_of_the_keys_features() -> None:
    plain, bool_mask, causal = (replace(KEY, mask=mask) for mask in (MaskClass.NONE, MaskClass.BOOL, MaskClass.CAUSAL))
    hashes = [hash_for(SPLIT_KV, key, PLAIN) for key in (plain, bool_mask, causal)]
    assert len(set(hashes)) == 3
    extras = [replace(KEY, mask=MaskClass.NONE, features=(extra,)) for extra in (Feature.SINK, Feature.SOFTCAP)]
    assert len({*hashes, *(hash_for(SPLIT_KV, key, PLAIN) for key in extras)}) == 5
    assert hashes == [present_hash(SPLIT_KV.name, key, PLAIN) for key in (plain, bool_mask, causal)]
    assert present_hash("gone", KEY, PLAIN) is None
    common = {"mask", "lengths", "causal", "causal_tail", "softcap", "sink", "lse", "eviction", "paged", "streamed"}
    assert whole_hashes() == {
        SPLIT_KV.name: template_hash(SPLIT_KV, frozenset({*common, "mask_by_row", "chains", "double_scalars"})),
        QUANTISED.name: template_hash(QUANTISED, frozenset({*common, *OF_QUANTISED})),
        LATENT.name: template_hash(LATENT, frozenset(common - {"paged"})),
    }
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in (*hashes, *whole_hashes().values()))


def test_what_a_configuration_chooses_is_hashed_for_it_alone() -> None:
    kinds = {kind: replace(PLAIN, prefetch_depth=1, prefetch_kind=kind) for kind in PrefetchKind}
    hashes = {kind: hash_for(SPLIT_KV, KEY, config) for kind, config in kinds.items()}
    plain = {kind for kind in kinds if kind.eviction == "normal"}
    assert {hashes[kind] for kind in plain} == {hash_for(SPLIT_KV, KEY, PLAIN)}
    assert len({hashes[kind] for kind in kinds if kind not in plain}) == 1
    assert len(set(hashes.values())) == 2
    streamed = replace(PLAIN, num_splits=2, partition=Partition.STREAMED)
    assert hash_for(SPLIT_KV, KEY, streamed) not in hashes.values()
    assert hash_for(SPLIT_KV, KEY, replace(streamed, num_splits=1)) == hash_for(SPLIT_KV, KEY, PLAIN)
    # A study may choose whatever there is.
    both = replace(streamed, prefetch_depth=1, prefetch_kind=PrefetchKind.BULK_KEEP)
    assert hash_for(SPLIT_KV, KEY, both) == hash_for(SPLIT_KV, KEY, None)


def test_what_is_tuned_here_is_not_stale_here() -> None:
    pytest.importorskip("triton")
    toolchain = present_toolchain(measured=False)
    evicting = replace(PLAIN, prefetch_depth=1, prefetch_kind=PrefetchKind.BULK_KEEP)
    configs = {
        config: [measured(key, toolchain=toolchain(key, config), config=config) for key in KEYS]
        for config in (PLAIN, evicting)
    }
    records = [*configs[PLAIN], *configs[evicting]]
    assert [why_stale(record) for record in records] == [""] * 2 * len(KEYS)
    swapped = replace(records[0], key=PLAIN_KEYS[-1])
    assert "other sources of split_kv_decode" in why_stale(swapped)


# Edits of the sources


def text_of(folder: Path, key: TuningKey, config: KernelConfig = PLAIN) -> str:
    template = template_of(key)
    return _text_with(folder, template, template.features_of(key, config))


@lru_cache(maxsize=128)
def _text_with(folder: Path, template: Template, features: frozenset[str]) -> str:
    return Program(Sources(folder), template.entries, template.absent_values(features)).text()


def edited(folder: Path, edit: Callable[[str, str], str]) -> Path:
    for path in FOLDER.iterdir():
        if path.name.endswith(".py"):
            (folder / path.name).write_text(edit(path.name.removesuffix(".py"), path.read_text()))
    return folder


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edited(tmp_path_factory.mktemp("templates"), lambda module, source: source)


@pytest.mark.parametrize("name", [*SEEDED_BUGS, *GPU_BUGS])
def test_whatever_makes_a_kernel_wrong_for_a_key_changes_its_hash(name: str, tmp_path: Path, unchanged: Path) -> None:
    seeded: SeededBug = {**SEEDED_BUGS, **GPU_BUGS}[name]

    def sow(module: str, source: str) -> str:
        for bug in seeded.bugs:
            source = source.replace(bug.old, bug.new) if bug.module == module else source
        return source

    changed = edited(tmp_path, sow)
    assert text_of(changed, seeded.key, seeded.config) != text_of(unchanged, seeded.key, seeded.config)


def test_comments_and_formatting_do_not_count(tmp_path: Path, unchanged: Path) -> None:
    tidied = edited(tmp_path, lambda module, source: ast.unparse(ast.parse(source)))
    assert "# " not in (tidied / "split_kv_decode.py").read_text()
    for key in KEYS:
        assert text_of(tidied, key) == text_of(unchanged, key)


def test_masks_do_not_count_where_there_is_none(tmp_path: Path, unchanged: Path) -> None:
    old = "tl.load(pointers, mask=wanted, other=1) != 0"
    changed = edited(tmp_path, lambda module, source: source.replace(old, old + " + 0"))
    assert (changed / "masking.py").read_text() != (unchanged / "masking.py").read_text()
    same = {key for key in KEYS if text_of(changed, key) == text_of(unchanged, key)}
    assert same == {key for key in KEYS if "mask" not in template_of(key).features_of(key, PLAIN)}


def test_pages_count_where_there_are_some(tmp_path: Path, unchanged: Path) -> None:
    old = "first % PAGE_SIZE"
    changed = edited(tmp_path, lambda module, source: source.replace(old, old + " + 0"))
    assert (changed / "paging.py").read_text() != (unchanged / "paging.py").read_text()
    other = {key for key in KEYS if text_of(changed, key) != text_of(unchanged, key)}
    assert other == {key for key in KEYS if key.page_size}


def test_lengths_count_where_there_are_some(tmp_path: Path, unchanged: Path) -> None:
    old = "tl.load(lengths_ptr + sequence"
    changed = edited(tmp_path, lambda module, source: source.replace(old, old + " + 0"))
    assert (changed / "split_plan.py").read_text() != (unchanged / "split_plan.py").read_text()
    other = {key for key in KEYS if text_of(changed, key) != text_of(unchanged, key)}
    assert other == {key for key in KEYS if key.mask in (MaskClass.LENGTHS, MaskClass.CAUSAL_LENGTHS)}
