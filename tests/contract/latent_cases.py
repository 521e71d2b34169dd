"""The contract cases of latent caches: one KV head whose keys are latents with rotary keys beside them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder, Partition
from prefetch_compiler.device import profile
from prefetch_compiler.lower.launch import launch_decode
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout
from prefetch_compiler.tuning.inputs import Operands, operands

from .cases import DEVICE, WITHIN_SEQUENCES
from .covering import covering_rows
from .masks import MASKS, MaskSizes
from .poison import uninitialised_is_nan


@dataclass(frozen=True)
class LatentCase:
    """Sizes as in AttentionSpec. ``keys`` are in use, of ``keys + spare_keys`` where there is a mask. ``in_one``:
    latents and rotary keys are columns of one tensor. ``lengths`` are in place of a mask."""

    batch: int = 2
    heads: int = 4
    latent_dim: int = 32
    rope_dim: int = 16
    q_len: int = 1
    keys: int = 37
    spare_keys: int = 9
    dtype: torch.dtype = torch.float16
    mask: str = "prefix"
    in_one: bool = False
    softcap: float | None = None
    sink: bool = False
    heads_first: bool = True
    block_kv: int = 16
    num_splits: int = 1
    num_stages: int = 2
    num_warps: int = 4
    prefetch_depth: int = 0
    load_path: LoadPath = LoadPath.POINTER
    operand_order: OperandOrder = OperandOrder.QK
    partition: Partition = Partition.EVEN

    @property
    def name(self) -> str:
        default = LatentCase()
        differing = [(f.name, getattr(self, f.name)) for f in fields(self)]
        differing = [(name, value) for name, value in differing if value != getattr(default, name)]
        words = [f"{name}_{getattr(value, 'value', value)}" for name, value in differing]
        return "-".join(words) or "default"

    @property
    def capacity(self) -> int:
        return self.keys if self.mask in ("none", "causal") else self.keys + self.spare_keys

    def mask_tensor(self) -> torch.Tensor | None:
        if self.mask not in MASKS:
            return None
        sizes = MaskSizes(self.batch, self.heads, self.q_len, self.keys, self.capacity, self.dtype)
        return MASKS[self.mask](sizes).to(DEVICE)

    def spec(self) -> AttentionSpec:
        mask = self.mask_tensor()
        kind = MaskKind.NONE if mask is None else MaskKind.BOOL if mask.dtype is torch.bool else MaskKind.ADDITIVE
        columns = self.latent_dim + self.rope_dim

        def layout(dim: int) -> TensorLayout:
            row = columns if self.in_one else dim
            return TensorLayout(self.capacity * row, self.capacity * row, row)

        return AttentionSpec(
            batch=self.batch,
            query_heads=self.heads,
            kv_heads=1,
            q_len=self.q_len,
            kv_len=self.capacity,
            head_dim=self.latent_dim,
            value_dim=self.latent_dim,
            dtype=self.dtype,
            scale=columns**-0.5,
            key_layout=layout(self.latent_dim),
            value_layout=layout(self.latent_dim),
            mask=MaskKind.LENGTHS if self.mask in ("lengths", "causal_lengths") else kind,
            mask_dtype=None if mask is None else mask.dtype,
            mask_per_row=mask is not None and (mask.shape[1] > 1 or mask.shape[2] > 1),
            is_causal=self.mask in ("causal", "causal_lengths"),
            out_heads_first=self.heads_first,
            softcap=self.softcap,
            sink=self.sink,
            rope_dim=self.rope_dim,
            rope_layout=layout(self.rope_dim),
        )

    def config(self) -> KernelConfig:
        config = KernelConfig(**{f.name: getattr(self, f.name) for f in fields(KernelConfig) if hasattr(self, f.name)})
        reason = why_inadmissible(self.spec(), config, profile(DEVICE))
        assert reason is None, reason
        return config


def build(case: LatentCase) -> Operands:
    """The same at every call. What no query sees is NaN, and so is what lies around the cache."""
    generator = torch.Generator(DEVICE).manual_seed(case.keys)
    lengths = None
    if case.spec().mask is MaskKind.LENGTHS:
        given = [case.keys, max(1, case.keys // 2), 0]
        lengths = torch.tensor([given[row % 3] for row in range(case.batch)], dtype=torch.int32, device=DEVICE)
    return operands(case.spec(), case.mask_tensor(), generator, lengths)


def solve(case: LatentCase, given: Operands) -> torch.Tensor:
    """Run the case on stale caches, with NaN in every tensor that is allocated meanwhile."""
    with uninitialised_is_nan():
        return launch_decode(
            given.q, given.stale_k, given.stale_v, given.expanded_mask(), given.bounds, is_causal=given.spec.is_causal,
            scale=given.scale, heads_first=case.heads_first, config=case.config(), lengths=given.lengths,
            softcap=given.softcap, sink=given.sink, rope=given.rope,
        )  # fmt: skip


# Every pair of values of two factors meets in some case.
FACTORS = {
    "mask": ["none", "causal", "lengths", "causal_lengths", "ragged", "left_padded_causal", "hole", "per_row", "alibi"],
    "dims": [(32, 16), (40, 32)],
    "heads": [1, 3, 12],
    "q_len": [1, 3],
    "keys": [1, 15, 17, 37],
    "num_splits": [1, 3],
    "block_kv": [16, 32],
    "dtype": [torch.float16, torch.bfloat16, torch.float32],
    "in_one": [False, True],
    "softcap": [None, 2.0],
    "sink": [False, True],
    "batch": [1, 2],
    "heads_first": [True, False],
    "load_path": [LoadPath.POINTER, LoadPath.TMA],
    "operand_order": [OperandOrder.QK, OperandOrder.KQ],
    "partition": WITHIN_SEQUENCES,
    "prefetch_depth": [0, 2],
}


def _cases() -> list[LatentCase]:
    rows = covering_rows(FACTORS, seed=3)
    return [LatentCase(latent_dim=dims[0], rope_dim=dims[1], **row) for row in rows for dims in [row.pop("dims")]]


CASES = _cases()
