"""Contract cases of quantised caches: the cases of ``cases.py`` with other factors, over stored numbers and scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, PrefetchKind
from prefetch_compiler.device import profile
from prefetch_compiler.lower.addresses import for_these_addresses
from prefetch_compiler.lower.call import QUANTISED, AttentionCall, spec_of
from prefetch_compiler.lower.launch import launch_decode
from prefetch_compiler.quantisation import quantise_for
from prefetch_compiler.recognize.bounds import mask_bounds
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.spec import (
    AS_THE_DTYPE_SAYS,
    AttentionSpec,
    QuantisedCache,
    ScaleGranularity,
    Storage,
)

from .cases import DEVICE, FACTORS, WITHIN_SEQUENCES, Case, build
from .covering import covering_rows
from .layouts import KV_LAYOUTS
from .poison import NAN, uninitialised_is_nan

E4M3, E5M2, INT8, UINT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8
# NaN in both float formats; int8 has none, and its largest number.
NAN_BYTE = 0x7F


@dataclass(frozen=True)
class QuantisedCase(Case):
    """``key_scales`` and ``value_scales`` are granularities; ``scale_layout`` says whether scales per token are
    adjacent by token or by head. So are ``key_zeros`` and ``value_zeros``."""

    dtype: torch.dtype = torch.bfloat16
    kv_dtype: torch.dtype = E4M3
    key_scales: ScaleGranularity = ScaleGranularity.HEAD
    value_scales: ScaleGranularity = ScaleGranularity.HEAD
    scale_dtype: torch.dtype = torch.float32
    scale_layout: str = "by_token"
    key_zeros: ScaleGranularity = ScaleGranularity.NONE
    value_zeros: ScaleGranularity = ScaleGranularity.NONE
    zero_dtype: torch.dtype = torch.float32
    key_minima: bool = False
    value_minima: bool = False
    packing: str = ""
    key_group: tuple[int, int] | None = None
    value_group: tuple[int, int] | None = None
    operand_order: OperandOrder = OperandOrder.KQ

    @property
    def cache(self) -> QuantisedCache:
        return QuantisedCache(
            self.kv_dtype, self.key_scales, self.value_scales, self.scale_dtype, self.key_zeros, self.value_zeros,
            self.zero_dtype, Storage(self.key_minima, self.value_minima, self.packing), self.key_group,
            self.value_group,
        )  # fmt: skip

    @property
    def name(self) -> str:
        default = QuantisedCase()
        differing = [f.name for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)]
        words = (f"{_SHORT.get(name, name)}{_text(getattr(self, name))}" for name in differing)
        return "-".join(words) or "default"


_SHORT = {
    "kv_dtype": "", "dtype": "", "key_scales": "K", "value_scales": "V", "scale_dtype": "scales_", "scale_layout": "",
    "mask": "", "kv_layout": "kv_", "q_layout": "q_", "load_path": "",
}  # fmt: skip


def _text(value: Any) -> str:
    return str(getattr(value, "value", value)).removeprefix("torch.")


@dataclass(frozen=True)
class QuantisedOperands:
    """What a case computes on. ``k`` and ``v`` are the dequantised numbers in float64, exact and finite; stored ones
    outside the range that some query of the sequence sees are NaN where the format has it, and so are their scales."""

    q: Tensor
    k: Tensor
    v: Tensor
    stored_k: Tensor
    stored_v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    mask: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None = None
    sink: Tensor | None = None
    k_zero: Tensor | None = None
    v_zero: Tensor | None = None
    storage: Storage = AS_THE_DTYPE_SAYS


def build_quantised(case: QuantisedCase) -> QuantisedOperands:
    """The case's operands on DEVICE, the same at every call."""
    plain = build(replace(case, dtype=torch.float32, kv_layout="contiguous"))
    typed = build(case)
    stale = plain.stale_k[:, :, :, 0].isnan()
    if case.kv_layout == "shared_batch":
        stale = stale.all(0, keepdim=True).expand_as(stale)
    k, stored_k, k_scale, k_zero = _quantised(case, plain.k, "key", stale)
    v, stored_v, v_scale, v_zero = _quantised(case, plain.v, "value", stale)
    mask = plain.mask
    if mask is not None and mask.is_floating_point():
        mask = typed.mask
    return QuantisedOperands(
        typed.q, k, v, stored_k, stored_v, k_scale, v_scale, mask, plain.is_causal, plain.scale, typed.softcap,
        typed.sink, k_zero, v_zero, case.cache.storage,
    )  # fmt: skip


def _quantised(
    case: QuantisedCase, x: Tensor, side: str, stale: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Exact numbers, stored ones, and their scale and zero."""
    granularity = case.key_scales if side == "key" else case.value_scales
    zeros = case.key_zeros if side == "key" else case.value_zeros
    if granularity is ScaleGranularity.TOKEN:
        # Tokens whose sizes differ by sixteen octaves, and one that is 0.
        octaves = torch.arange(x.shape[2], device=x.device) * 7 % 17 - 8
        x = x * torch.exp2(octaves.float())[:, None] * (octaves != 3)[:, None]
    if case.kv_layout == "shared_batch":
        x = x[:1].expand(x.shape)
    elif case.kv_layout == "shared_heads":
        x = x[:, :1].expand(x.shape)
    given = quantise_for(case.cache, side, x)
    numbers, scale, zero = given.numbers, given.scale, given.zero
    exact = given.dequantised(numbers)
    poisoned = numbers.view(torch.uint8).masked_fill(stale[..., None], NAN_BYTE)
    stored = _lay_out(case, poisoned).view(case.kv_dtype)
    if granularity is ScaleGranularity.TOKEN and scale is not None:
        scale = scale.masked_fill(stale, NAN)
        if case.scale_layout == "by_head":
            scale = scale.transpose(1, 2).contiguous().transpose(1, 2)
    if zeros is ScaleGranularity.TOKEN and zero is not None:
        zero = zero.masked_fill(stale, NAN if zero.is_floating_point() else NAN_BYTE)
    return exact, stored, scale, zero


def _lay_out(case: QuantisedCase, bytes_: Tensor) -> Tensor:
    """As ``layouts`` does, through float32 numbers that hold one byte each, whose bands become NaN_BYTE."""
    laid = KV_LAYOUTS[case.kv_layout](bytes_.float())
    elements = laid.untyped_storage().nbytes() // 4
    flat = laid.as_strided((elements,), (1,), 0).nan_to_num(nan=float(NAN_BYTE))
    return flat.to(torch.uint8).as_strided(laid.shape, laid.stride(), laid.storage_offset())


def config_of(case: QuantisedCase, operands: QuantisedOperands) -> KernelConfig:
    """The case's configuration, less what this spec or device does not admit."""
    config = KernelConfig(**{f.name: getattr(case, f.name) for f in fields(KernelConfig)})
    spec = quantised_spec(operands)
    for candidate in (config, *_conceding(config)):
        if why_inadmissible(spec, candidate, profile(DEVICE)) is None:
            return for_these_addresses(candidate, operands.stored_k, operands.stored_v)
    raise AssertionError(f"{case.name} cannot run on {DEVICE}")


def _conceding(config: KernelConfig) -> Iterator[KernelConfig]:
    for change in (
        {"prefetch_kind": PrefetchKind.LINE}, {"load_path": LoadPath.POINTER}, {"num_warps": 2},
        {"launch_overlap": False}, {"prefetch_depth": 0, "prologue_prefetch": False}, {"num_stages": 1},
        {"block_kv": 16},
    ):  # fmt: skip
        config = replace(config, **change)
        yield config


def quantised_spec(operands: QuantisedOperands) -> AttentionSpec:
    """The spec that the operator would write for these operands."""
    o = operands
    return spec_of(
        AttentionCall(
            o.q, o.stored_k, o.stored_v, o.k_scale, o.v_scale, o.mask, None, None, None, o.sink, o.is_causal, o.scale,
            o.softcap, QUANTISED, o.k_zero, o.v_zero, o.storage.encode(),
        )
    )  # fmt: skip


def solve_quantised(case: QuantisedCase, operands: QuantisedOperands, lse: Tensor | None = None) -> Tensor:
    """Run the case on stale caches, with NaN in every tensor that is allocated meanwhile. ``lse`` is written too."""
    o, config = operands, config_of(case, operands)
    bounds = None if o.mask is None else mask_bounds(o.mask, case.capacity)
    heads = case.group * case.kv_heads
    expanded = None if o.mask is None else o.mask.expand(case.batch, heads, case.q_len, case.capacity)
    with uninitialised_is_nan():
        return launch_decode(
            o.q, o.stored_k, o.stored_v, expanded, bounds, is_causal=o.is_causal, scale=o.scale,
            heads_first=case.heads_first, config=config, k_scale=o.k_scale, v_scale=o.v_scale,
            softcap=o.softcap, sink=o.sink, lse=lse, k_zero=o.k_zero, v_zero=o.v_zero, storage=o.storage,
        )  # fmt: skip


GRANULARITIES = [one for one in ScaleGranularity if one is not ScaleGranularity.GROUP]
QUANTISED_FACTORS: dict[str, list[Any]] = {
    **{name: values for name, values in FACTORS.items() if name not in ("operand_order", "merge", "dtype")},
    "partition": WITHIN_SEQUENCES,
    "dtype": [torch.bfloat16, torch.float16],
    "kv_dtype": [E4M3, E5M2, INT8],
    "key_scales": GRANULARITIES,
    "value_scales": GRANULARITIES,
    "scale_dtype": [torch.float32, torch.float16, torch.bfloat16],
    "scale_layout": ["by_token", "by_head"],
    "kv_layout": [name for name in KV_LAYOUTS if name != "odd_strides"],
    "num_warps": [1, 2, 4],
    # Fewer than for other caches: rows come in tiles of 16 at most, and the interpreter runs them one after the other.
    "dims": [(8, 8), (40, 24), (64, 64), (96, 96), (192, 128), (256, 256)],
    "group": [1, 3, 4, 7],
    "q_len": [1, 3, 16],
    "batch": [1, 2],
    "block_kv": [16, 32, 64],
    "num_splits": [1, 2, 7],
}


def _case(row: dict[str, Any]) -> QuantisedCase:
    (head_dim, value_dim), (tiles, extra_keys) = row.pop("dims"), row.pop("keys")
    return QuantisedCase(
        head_dim=head_dim, value_dim=value_dim, tiles=tiles, extra_keys=extra_keys, merge=Merge.SEPARATE, **row
    )


# The interpreter runs one program after the other, and ignores half of what a configuration says.
_INTERPRETED: dict[str, list[Any]] = {
    "mask": ["none", "causal", "ragged", "alibi"],
    "kv_layout": ["contiguous", "transposed", "packed_pair", "shared_batch"],
    "dims": [(8, 8), (40, 24), (192, 128)],
    "group": [1, 3, 7],
    "q_len": [1, 3],
    "keys": FACTORS["keys"][:3],
    "block_kv": [16, 32],
    "num_splits": [1, 3],
    "batch": [2],
    "kv_heads": [2],
    "prefetch_depth": [0],
    "num_stages": [2],
    "num_warps": [2],
    "scale_dtype": [torch.float32, torch.float16],
}
if DEVICE.type == "cpu":
    QUANTISED_FACTORS |= _INTERPRETED

QUANTISED_CASES: list[QuantisedCase] = [_case(row) for row in covering_rows(QUANTISED_FACTORS, seed=5)]
