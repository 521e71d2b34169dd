"""The contract cases: which attention problems every template must solve, and with which configurations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, Partition, PrefetchKind
from prefetch_compiler.device import DeviceProfile, profile
from prefetch_compiler.lower.launch import launch_decode
from prefetch_compiler.recognize.bounds import mask_bounds
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.footprint import padded_dim, row_tile
from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout

from .covering import covering_rows
from .layouts import KV_LAYOUTS, QUERY_LAYOUTS
from .masks import MASKS, MaskSizes, visible_keys
from .poison import NAN, uninitialised_is_nan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Those of programs that have one sequence each: what kernels over quantised and latent caches have.
WITHIN_SEQUENCES = [partition for partition in Partition if partition is not Partition.STREAMED]


@dataclass(frozen=True)
class Case:
    """One attention problem and the configuration to solve it with; sizes as in AttentionSpec.

    Attributes:
        tiles, extra_keys: the keys in use are ``tiles * block_kv + extra_keys``, at least 1.
        spare_keys: capacity beyond them, where there is a mask.
        mask: ``none``, ``causal`` or a name in ``masks.MASKS``.
        scale: softmax scale times sqrt(head_dim).
        softcap: what scores are capped at, before the mask.
        sink: whether every query head has one.
    """

    batch: int = 3
    group: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    q_len: int = 1
    tiles: int = 3
    extra_keys: int = 5
    spare_keys: int = 37
    mask: str = "none"
    scale: float = 1.0
    softcap: float | None = None
    sink: bool = False
    kv_layout: str = "contiguous"
    q_layout: str = "contiguous"
    heads_first: bool = True
    block_kv: int = 16
    num_splits: int = 1
    num_warps: int = 4
    num_stages: int = 2
    prefetch_depth: int = 0
    prefetch_kind: PrefetchKind = PrefetchKind.LINE
    load_path: LoadPath = LoadPath.POINTER
    operand_order: OperandOrder = OperandOrder.QK
    launch_overlap: bool = False
    merge: Merge = Merge.SEPARATE
    partition: Partition = Partition.EVEN
    prologue_prefetch: bool = False

    @property
    def valid_keys(self) -> int:
        return max(1, self.tiles * self.block_kv + self.extra_keys)

    @property
    def capacity(self) -> int:
        return self.valid_keys + (self.spare_keys if self.mask in MASKS else 0)

    @property
    def name(self) -> str:
        """What tells this case from the default one, for test ids."""
        default = Case()
        differing = [f.name for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)]
        return "-".join(f"{_SHORT.get(name, name)}{_text(getattr(self, name))}" for name in differing) or "default"


_SHORT = {
    "batch": "B", "group": "g", "kv_heads": "kv", "head_dim": "d", "value_dim": "dv", "dtype": "", "q_len": "q",
    "tiles": "t", "extra_keys": "x", "spare_keys": "spare", "mask": "", "scale": "scale", "kv_layout": "kv_",
    "q_layout": "q_", "heads_first": "hf", "block_kv": "b", "num_splits": "s", "num_warps": "w", "num_stages": "st",
    "prefetch_depth": "p", "prefetch_kind": "", "load_path": "", "operand_order": "", "launch_overlap": "pdl",
    "merge": "", "partition": "", "prologue_prefetch": "early",
}  # fmt: skip


def _text(value: Any) -> str:
    return str(getattr(value, "value", value)).removeprefix("torch.")


@dataclass(frozen=True)
class Operands:
    """What a case computes on: ``k`` and ``v`` are finite throughout; in ``stale_k`` and ``stale_v`` every key outside
    the range that some query of the sequence sees holds NaN. The mask is not expanded."""

    q: Tensor
    k: Tensor
    v: Tensor
    stale_k: Tensor
    stale_v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None
    sink: Tensor | None


def build(case: Case) -> Operands:
    """The case's operands on DEVICE, the same at every call."""
    generator = torch.Generator(DEVICE).manual_seed(case.valid_keys * 1000 + case.head_dim)
    heads = case.group * case.kv_heads

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE).to(case.dtype)

    q = normal(case.batch, heads, case.q_len, case.head_dim)
    k = normal(case.batch, case.kv_heads, case.capacity, case.head_dim)
    v = normal(case.batch, case.kv_heads, case.capacity, case.value_dim)
    mask = _mask(case, heads)
    stale = _stale_keys(case, mask)[:, None, :, None]
    lay_out = KV_LAYOUTS[case.kv_layout]
    return Operands(
        q=QUERY_LAYOUTS[case.q_layout](q),
        k=lay_out(k),
        v=lay_out(v),
        stale_k=lay_out(k.masked_fill(stale, NAN)),
        stale_v=lay_out(v.masked_fill(stale, NAN)),
        mask=mask,
        is_causal=case.mask == "causal",
        scale=case.scale / math.sqrt(case.head_dim),
        softcap=case.softcap,
        sink=normal(heads) + math.log(case.valid_keys) if case.sink else None,
    )


def _mask(case: Case, heads: int) -> Tensor | None:
    if case.mask not in MASKS:
        return None
    sizes = MaskSizes(case.batch, heads, case.q_len, case.valid_keys, case.capacity, case.dtype)
    return MASKS[case.mask](sizes).to(DEVICE)


def _stale_keys(case: Case, mask: Tensor | None) -> Tensor:
    """Keys before the first or after the last that some query sees: bool (batch, capacity)."""
    key = torch.arange(case.capacity, device=DEVICE)
    if mask is None:
        last = min(case.q_len, case.capacity) if case.mask == "causal" else case.capacity
        return (key >= last).expand(case.batch, case.capacity)
    seen = visible_keys(mask, case.capacity).expand(case.batch, case.capacity)
    if case.kv_layout == "shared_batch":
        seen = seen.any(0, keepdim=True).expand_as(seen)
    first = torch.where(seen, key, case.capacity).amin(1, keepdim=True)
    last = torch.where(seen, key, -1).amax(1, keepdim=True)
    return (key < first) | (key > last)


def spec_of(case: Case, operands: Operands) -> AttentionSpec:
    """The spec that the recogniser would write for these operands."""
    mask = operands.mask
    kind = MaskKind.NONE if mask is None else MaskKind.BOOL if mask.dtype is torch.bool else MaskKind.ADDITIVE
    return AttentionSpec(
        batch=case.batch,
        query_heads=case.group * case.kv_heads,
        kv_heads=case.kv_heads,
        q_len=case.q_len,
        kv_len=case.capacity,
        head_dim=case.head_dim,
        value_dim=case.value_dim,
        dtype=case.dtype,
        scale=operands.scale,
        key_layout=TensorLayout(*operands.stale_k.stride()[:3]),
        value_layout=TensorLayout(*operands.stale_v.stride()[:3]),
        mask=kind,
        mask_dtype=None if mask is None else mask.dtype,
        mask_per_row=mask is not None and (mask.shape[1] > 1 or mask.shape[2] > 1),
        is_causal=operands.is_causal,
        out_heads_first=case.heads_first,
        softcap=case.softcap,
        sink=case.sink,
    )


Concession = Callable[[KernelConfig], KernelConfig]
CONCESSIONS: list[Concession] = [
    lambda c: replace(c, num_warps=max(4, c.num_warps)) if c.operand_order is OperandOrder.QK64 else c,
    lambda c: replace(c, operand_order=OperandOrder.QK),
    lambda c: replace(c, prefetch_kind=PrefetchKind.LINE),
    lambda c: replace(c, load_path=LoadPath.POINTER),
    lambda c: replace(c, launch_overlap=False),
    lambda c: c.without_prefetch(),
    lambda c: replace(c, num_stages=2),
    lambda c: replace(c, operand_order=OperandOrder.QK),
    *[lambda c: replace(c, block_kv=max(16, c.block_kv // 2))] * 4,
    lambda c: replace(c, num_stages=1),
]


def config_of(case: Case, spec: AttentionSpec, device: DeviceProfile) -> KernelConfig:
    """The case's configuration, less what this spec or device does not admit: one concession if one is enough,
    otherwise as many as it takes, in order."""
    wanted = KernelConfig(**{f.name: getattr(case, f.name) for f in fields(KernelConfig)})
    if device.backend != "interpreter":
        wanted = _within_registers(wanted, spec)
    candidates = [wanted, *(concede(wanted) for concede in CONCESSIONS), *accumulate_concessions(wanted)]
    admissible = [config for config in candidates if why_inadmissible(spec, config, device) is None]
    assert admissible, f"{case.name} cannot run on {device.name}"
    return admissible[0]


def accumulate_concessions(config: KernelConfig) -> Iterator[KernelConfig]:
    for concede in CONCESSIONS:
        config = concede(config)
        yield config


def _within_registers(config: KernelConfig, spec: AttentionSpec) -> KernelConfig:
    """More warps, then smaller tiles, until the tiles of a step fill three quarters of the registers at most: the
    assembler takes up to two minutes for a kernel that spills most of what it holds, and no one would run it."""
    while _register_share(config, spec) > 0.75 and (config.num_warps < 8 or config.block_kv > 16):
        if config.num_warps < 8:
            config = replace(config, num_warps=config.num_warps * 2)
        else:
            config = replace(config, block_kv=config.block_kv // 2)
    return config


def _register_share(config: KernelConfig, spec: AttentionSpec) -> float:
    """Bytes of queries, keys, values, scores, probabilities and accumulator over those of the warps' registers."""
    rows = row_tile(spec.rows, config.operand_order)
    dim, value_dim = padded_dim(spec.head_dim), padded_dim(spec.value_dim)
    operands = (rows * dim + config.block_kv * (dim + value_dim)) * spec.element_bytes
    results = rows * value_dim * 4 + rows * config.block_kv * (4 + spec.element_bytes)
    return (operands + results) / (config.num_warps * 32 * 255 * 4)


def solve(case: Case, operands: Operands, lse: Tensor | None = None) -> Tensor:
    """Run the case on stale caches, with NaN in every tensor that is allocated meanwhile. ``lse`` is written too."""
    config = config_of(case, spec_of(case, operands), profile(DEVICE))
    heads = case.group * case.kv_heads
    mask = operands.mask
    bounds = None if mask is None else mask_bounds(mask, case.capacity)
    expanded = None if mask is None else mask.expand(case.batch, heads, case.q_len, case.capacity)
    with uninitialised_is_nan():
        return launch_decode(
            operands.q,
            operands.stale_k,
            operands.stale_v,
            expanded,
            bounds,
            is_causal=operands.is_causal,
            scale=operands.scale,
            heads_first=case.heads_first,
            config=config,
            softcap=operands.softcap,
            sink=operands.sink,
            lse=lse,
        )


# Every pair of values of two factors meets in some case.
FACTORS: dict[str, list[Any]] = {
    "mask": ["none", "causal", *MASKS],
    "dims": [(8, 8), (16, 16), (40, 40), (64, 64), (72, 72), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)],
    # With 16 queries, 11 heads fill a tile of rows and part of another.
    "group": [1, 3, 4, 6, 7, 8, 11],
    "kv_layout": list(KV_LAYOUTS),
    "keys": [(0, 1), (1, -1), (1, 0), (1, 1), (3, 5)],
    "q_len": [1, 2, 3, 7, 16],
    "num_splits": [1, 2, 3, 7, 12],
    "block_kv": [16, 32, 64, 128],
    "q_layout": list(QUERY_LAYOUTS),
    "num_warps": [1, 2, 4, 8],
    "num_stages": [1, 2, 3, 4],
    "prefetch_depth": [0, 1, 3, 8],
    "dtype": [torch.float16, torch.bfloat16, torch.float32],
    "scale": [1.0, 1.7, -1.0],
    "softcap": [None, 2.0, 50.0],
    "sink": [False, True],
    "batch": [1, 3],
    "kv_heads": [1, 2],
    "spare_keys": [0, 37],
    "prefetch_kind": list(PrefetchKind),
    "load_path": [LoadPath.POINTER, LoadPath.TMA],
    "operand_order": list(OperandOrder),
    "launch_overlap": [False, True],
    "merge": list(Merge),
    "partition": list(Partition),
    "prologue_prefetch": [False, True],
    "heads_first": [True, False],
}


def _case(row: dict[str, Any]) -> Case:
    (head_dim, value_dim), (tiles, extra_keys) = row.pop("dims"), row.pop("keys")
    return Case(head_dim=head_dim, value_dim=value_dim, tiles=tiles, extra_keys=extra_keys, **row)


CASES: list[Case] = [_case(row) for row in covering_rows(FACTORS, seed=2)]
