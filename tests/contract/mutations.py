"""What is changed, one thing at a time: a mutant, its original, the form that it is of, and a way to blind the pass to
the change. ``python -m tests.contract.mutants`` tries them all and prints what became of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from . import blindness
from .blindness import Blind
from .golden import (
    dequantised,
    evicted,
    latent,
    partial,
    spellings,
)
from .golden.dequantised import Dequantised
from .golden.flex import Flex
from .golden.graph import Golden
from .golden.hand_written import HandWritten
from .golden.latent import Latent
from .golden.multi_head import MultiHead
from .golden.paged import Paged
from .golden.partial import Partial
from .golden.products import Products, grouped_einsum
from .golden.speculation import Tree
from .golden.three_dimensional import Flat

# Which of the registered forms (``forms.py``) each kind of program is.
_SDPA = ("is_sdpa", "recognise_marked_sdpa")
_SOFTMAX = ("is_attention_softmax", "recognise_softmax_chain")
_WRITTEN_SOFTMAX = ("is_written_softmax", "recognise_softmax_chain")
_FLEX_CALL = ("is_flex_output", "recognise_marked_flex")
_EXACT_KEY = ("read_beside_exact_key",)
_BEFORE_RESIDUAL = ("read_before_residual",)
_FORMS: dict[type, tuple[str, ...]] = {
    HandWritten: _SDPA,
    Tree: _SDPA,
    Flat: ("is_sdpa_3d", "recognise_marked_sdpa"),
    MultiHead: ("is_multi_head", "recognise_marked_sdpa"),
    Products: _SOFTMAX,
    Partial: _SOFTMAX,
    Flex: _FLEX_CALL,
    Dequantised: ("read_as_stored",),
    Paged: ("read_as_paged",),
    Latent: ("read_as_latent",),
}


@dataclass(frozen=True)
class Mutation:
    """``mutant`` differs from ``original`` in one thing, to which ``blind`` makes the pass blind. ``forms`` are those
    of the mutant that have to see to it."""

    name: str
    original: Golden
    mutant: Golden
    blind: Blind
    forms: tuple[str, ...]


def _mutation(
    name: str,
    original: HandWritten | Products | Flex | Dequantised | Paged | Latent | Partial | Flat | Tree | MultiHead,
    blind: Blind,
    forms: tuple[str, ...] = (),
    **changes: object,
) -> Mutation:
    mutant = replace(original, name=f"{original.name}_{name}", **changes)  # type: ignore[arg-type]
    return Mutation(name, original.golden, mutant.golden, blind, forms or _FORMS[type(original)])


GROUPED = HandWritten("grouped", spelling=spellings.as_stored, enable_gqa=True, q_len=3)
_REPEATED = HandWritten("repeated", q_len=3)
_SIX_HEADS = HandWritten("six_heads", kv_heads=2, group=3)
_BOOL = replace(GROUPED, mask="bool-B.1.q.S")
_THREE = replace(GROUPED, batch=3)
_BIASED = replace(GROUPED, mask="bias-B.1.q.S")

_BY_PRODUCTS = Products("products", q_len=5)
_MASKED = Products("masked_products", mask="bias-1.H.1.S")
_GROUPS = Products("grouped_products", grouped_einsum, q_len=5)
_FILLED = Products("filled_products", mask="inf-B.1.q.S", q_len=5)

_FLEX = Flex("flex", q_len=3)
_FLEX_SHOWN = replace(_FLEX, mask="window")
_FLEX_FILLED = replace(_FLEX, fill="not_first_query")

_PAGED = Paged("paged")
_PAGED_INT8 = Paged("paged_int8", format=torch.int8, dtype=torch.float16)
_TOKENS = Dequantised("tokens")
_EXACT = replace(_TOKENS, name="exact", exact_at=8)
_RESIDUAL = replace(_TOKENS, name="residual", residual=3)
_HEADS = Dequantised(
    "heads", key_scale="1.H.1.1", keys=dequantised.HEAD, value_scale="1.1.1.1", values=dequantised.TENSOR
)
_ZEROS = replace(_TOKENS, name="zeros", dequantise=dequantised.less_zeros)
_CHANNELS = Dequantised("channels", key_scale="B.H.1.D", value_scale="1.H.1.D")
_NIBBLES = Dequantised(
    "nibbles", format=torch.uint8, dequantise=dequantised.interleaved, packing="uint4_interleaved", key_exponent=-2,
    value_exponent=-2,
)  # fmt: skip
_E4M3 = Dequantised("e4m3", format=dequantised.E4M3)
TREE = Tree("tree", q_len=4)
_FLAT = Flat("flat", kv_heads=2)
_MULTI_HEAD = MultiHead("multi_head")

_PARTIAL = Partial("partial", merge=partial.evenly)
_MERGED_FLEX = Partial("merged_flex", **partial.FLEX)

_LATENT = Latent("latent")
_ABSORBED = Latent("absorbed", absorbed=True)

MUTATIONS = [
    _mutation("scale", GROUPED, blindness.to_scale, scale=0.9),
    _mutation("scale_sign", GROUPED, blindness.to_scale, scale=-0.25),
    _mutation("scale_zero", GROUPED, blindness.to_scale, scale=0.0),
    _mutation("scale_of_repeated", _REPEATED, blindness.to_scale, scale=1),
    _mutation("mask", GROUPED, blindness.to_mask, mask="bool-1.1.1.S"),
    _mutation("mask_per_sequence", GROUPED, blindness.to_mask, mask="bool-B.1.1.S"),
    _mutation("mask_additive", GROUPED, blindness.to_mask, mask="inf-B.H.q.S"),
    _mutation("mask_kind", _BOOL, blindness.to_mask_kind, mask="bias-B.1.q.S"),
    _mutation("mask_polarity", GROUPED, blindness.to_mask_polarity, mask="bool-B.H.q.S"),
    _mutation("mask_rows", replace(GROUPED, mask="bool-1.1.1.S"), blindness.to_mask_rows, mask="bool-B.1.q.S"),
    _mutation("mask_last_key", GROUPED, blindness.to_last_key, mask="bias-1.S"),
    _mutation("mask_first_key", GROUPED, blindness.to_first_key, mask="bias-1.S"),
    _mutation("mask_holes", GROUPED, blindness.to_holes, mask="bool-1.S"),
    _mutation("mask_of_sequences", replace(_THREE, mask="bool-1.S"), blindness.to_sequences, mask="bool-B.1.1.S"),
    _mutation("mask_uniform_rows", replace(GROUPED, mask="inf-q.S"), blindness.to_uniform_rows, mask="min-q.S"),
    _mutation("mask_values", _BIASED, blindness.to_mask, mask="inf-B.1.q.S"),
    _mutation("causality", GROUPED, blindness.to_causality, is_causal=True),
    _mutation("causality_of_one_query", replace(GROUPED, q_len=1), blindness.to_causality, is_causal=True),
    _mutation("causality_of_repeated", _REPEATED, blindness.to_causality, is_causal=True),
    _mutation("group", _SIX_HEADS, blindness.to_head_count, kv_heads=3, group=2),
    _mutation("head_order", _SIX_HEADS, blindness.to_head_order, spelling=spellings.tiled_by_expand, grouped=False),
    _mutation(
        "value_head_order",
        _SIX_HEADS,
        blindness.to_value_order,
        value_spelling=spellings.tiled_by_expand,
        grouped=False,
    ),
    _mutation("product_scale", _BY_PRODUCTS, blindness.to_scale_of_scores, scale=0.9),
    _mutation("product_scale_sign", _BY_PRODUCTS, blindness.to_scale_of_scores, scale=-0.25),
    _mutation("product_scale_of_bias", _MASKED, blindness.to_scale_of_bias, scale=0.5, scale_is="after_mask"),
    _mutation("product_factor", _BY_PRODUCTS, blindness.to_factor, scale_is="learned", scale=0.7),
    _mutation("product_softcap", _BY_PRODUCTS, blindness.to_softcap, softcap=0.7),
    _mutation("product_bias", _BY_PRODUCTS, blindness.to_bias, mask="add-B.1.q.S"),
    _mutation("product_bias_of_groups", _GROUPS, blindness.to_bias, mask="add-B.H.q.S"),
    _mutation("product_fill", _BY_PRODUCTS, blindness.to_fill, mask="inf-B.1.1.S"),
    _mutation("product_fill_polarity", _BY_PRODUCTS, blindness.to_fill_polarity, mask="where_inf-B.1.q.S"),
    _mutation("product_fill_value", _FILLED, blindness.to_fill_value, mask="uniform-B.1.q.S"),
    _mutation("product_sink", _BY_PRODUCTS, blindness.to_sink, sink="plain"),
    _mutation("product_which_sink", _BY_PRODUCTS, blindness.to_which_sink, sink="less_maximum"),
    _mutation("product_two_masks", _BY_PRODUCTS, blindness.to_composed_mask, mask="both-B.1.q.S"),
    _mutation("flat_scale", _FLAT, blindness.to_scale, scale=0.9),
    _mutation("flat_causality", _FLAT, blindness.to_causality, is_causal=True),
    _mutation("tree_shape", TREE, blindness.to_mask_rows, seed=1),
    _mutation("trees_of_sequences", TREE, blindness.to_mask_of_sequences, trees=2),
    _mutation("multi_head_mask", _MULTI_HEAD, blindness.to_mask_of_multi_head, masked=True),
    _mutation("multi_head_padding", _MULTI_HEAD, blindness.to_mask_of_multi_head, padded=True),
    _mutation("multi_head_last_key", _MULTI_HEAD, blindness.to_last_key, masked=True),
    _mutation("multi_head_heads", _MULTI_HEAD, blindness.to_heads_of_multi_head, turned=True),
    _mutation(
        "product_off_by_one", _BY_PRODUCTS, blindness.to_other_terms, _WRITTEN_SOFTMAX, softmax="off_by_one"
    ),
    _mutation("partial_lse", _PARTIAL, blindness.to_lse, merge=partial.by_log_add),
    _mutation("partial_sink", _MERGED_FLEX, blindness.to_lse_units, _FLEX_CALL, sink=True),
    _mutation(
        "partial_prefix",
        replace(_PARTIAL, merge=partial.by_log_add),
        blindness.to_packing,
        ("read_packed",),
        shared=True,
    ),
    _mutation("flex_scale", _FLEX, blindness.to_scale_of_flex, scale=0.9),
    _mutation("flex_mask_polarity", replace(_FLEX, mask="hidden"), blindness.to_block_mask_polarity, mask="causal"),
    _mutation("flex_window", _FLEX_SHOWN, blindness.to_block_mask, window=9),
    _mutation("flex_captured", _FLEX_SHOWN, blindness.to_captured, held=4),
    _mutation("flex_sequence", replace(_FLEX, mask="causal"), blindness.to_sequence_index, mask="padded"),
    _mutation("flex_head", replace(_FLEX, mask="heads"), blindness.to_head_index, mask="other_heads"),
    _mutation("flex_slope", replace(_FLEX, bias="alibi"), blindness.to_bias, slope=1.4),
    _mutation("flex_factor", _FLEX, blindness.to_scale_of_scores, factor=-2.0),
    _mutation("flex_softcap", _FLEX, blindness.to_softcap, softcap=0.7),
    _mutation("flex_fill_polarity", replace(_FLEX, fill="hidden"), blindness.to_fill_polarity, fill="causal"),
    _mutation("flex_fill_value", _FLEX_FILLED, blindness.to_fill_value, filling=-1e9),
    _mutation("key_scale", _TOKENS, blindness.to_key_scale, key_exponent=-4),
    _mutation("value_scale", _TOKENS, blindness.to_value_scale, value_exponent=-4),
    _mutation(
        "key_scale_of_tokens", _HEADS, blindness.to_scales_of_tokens, key_scale="B.H.S.1", keys=dequantised.TOKEN
    ),
    _mutation(
        "value_scale_of_heads", _HEADS, blindness.to_scales_of_heads, value_scale="B.H.1.1", values=dequantised.HEAD
    ),
    _mutation(
        "division_by_scale",
        _TOKENS,
        blindness.to_division_by_scale,
        dequantise=dequantised.divided,
        key_exponent=6,
        value_exponent=6,
    ),
    _mutation(
        "key_channels", _HEADS, blindness.to_scales_of_channels, key_scale="1.H.1.D", keys=dequantised.NONE
    ),
    _mutation(
        "value_channels", _HEADS, blindness.to_scales_of_channels, value_scale="1.1.1.D", values=dequantised.NONE
    ),
    _mutation(
        "second_scale", _TOKENS, blindness.to_second_scale, dequantise=dequantised.by_two_scales, key_exponent=-3
    ),
    _mutation("exact_key", _TOKENS, blindness.to_tokens_beside, _EXACT_KEY, exact_at=8),
    _mutation("exact_key_place", _EXACT, blindness.to_place_of_exact_key, _EXACT_KEY, exact_at=3),
    _mutation("residual", _RESIDUAL, blindness.to_tokens_beside, _BEFORE_RESIDUAL, residual=4),
    _mutation("residual_hidden", _RESIDUAL, blindness.to_mask_of_tokens_beside, _BEFORE_RESIDUAL, residual_hidden=True),
    _mutation("exact_key_hidden", _EXACT, blindness.to_mask_of_tokens_beside, _EXACT_KEY, exact_at=12),
    _mutation("key_zero", _TOKENS, blindness.to_key_zero, dequantise=dequantised.less_zeros),
    _mutation("value_zero", _TOKENS, blindness.to_value_zero, dequantise=dequantised.less_zeros),
    _mutation("zeros_of_tokens", _TOKENS, blindness.to_zeros_of_tokens, dequantise=dequantised.less_zeros),
    _mutation("zero_sign", _ZEROS, blindness.to_sign_of_zeros, dequantise=dequantised.plus_zeros),
    _mutation("zero_place", _ZEROS, blindness.to_place_of_zeros, dequantise=dequantised.plus_minima),
    _mutation("column_groups", _TOKENS, blindness.to_groups, dequantise=dequantised.of_column_groups),
    _mutation("rows_of_groups", _TOKENS, blindness.to_groups, dequantise=dequantised.in_rows_of_groups),
    _mutation("runs", _CHANNELS, blindness.to_runs, dequantise=dequantised.of_runs),
    _mutation("byte_sign", _TOKENS, blindness.to_sign_of_bytes, format=torch.uint8),
    _mutation(
        "nibble_order", _NIBBLES, blindness.to_order_of_nibbles, dequantise=dequantised.in_halves_about_8
    ),
    _mutation("nibble_sign", _NIBBLES, blindness.to_sign_of_nibbles, dequantise=dequantised.signed_interleaved),
    Mutation(
        "lengths_of_heads", evicted.OTHER_LENGTHS, evicted.LENGTHS_OF_HEADS, blindness.to_sequences, ("read_by_head",)
    ),
    Mutation(
        "picked_blocks", evicted.OTHER_BLOCKS, evicted.PICKED_BLOCKS, blindness.to_lists_of_heads, ("read_by_lists",)
    ),
    Mutation("scale_of_pruned", evicted.KEPT_SCALE, evicted.PRUNED_CHANNELS, blindness.to_scale, _SDPA),
    _mutation("page_order", _PAGED, blindness.to_order_of_pages, other_pages=True),
    _mutation("negative_pages", _PAGED, blindness.to_negative_pages, negative=True),
    _mutation("value_pages", _PAGED, blindness.to_which_table, values_flipped=True),
    _mutation("pages_of_scales", _PAGED_INT8, blindness.to_pages_of_scales, other_pages=True),
    _mutation("latent_scale", _LATENT, blindness.to_scale, scale=0.5),
    _mutation("rotary_keys", replace(_LATENT, rope_factor=0.0), blindness.to_rotary_keys, rope_factor=1.0),
    _mutation("weights_of_heads", _LATENT, blindness.to_flips, expand=latent.weights_of_other_heads),
    _mutation("latents_of_values", _LATENT, blindness.to_whose_latents, expand=latent.values_of_others),
    _mutation("latents_of_sequences", _LATENT, blindness.to_flips, expand=latent.values_of_other_sequences),
    _mutation("rotary_first", _LATENT, blindness.to_order_of_columns, expand=latent.rope_first),
    _mutation("absorbed_rotary_first", _ABSORBED, blindness.to_order_of_columns, rope_leads=True),
    _mutation("columns_of_weights", _LATENT, blindness.to_which_columns, expand=latent.values_of_first_columns),
    _mutation("format", _E4M3, blindness.to_format, format=dequantised.E5M2),
]  # fmt: skip
