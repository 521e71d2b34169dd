"""Groups of cases: those of one template and feature that one launch solves, one case a sequence of its batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...config import KernelConfig, LoadPath, Merge, OperandOrder, Partition
from ...database.key import parse_key
from ...device import DeviceProfile
from ...errors import InadmissibleConfigError, Refused
from ...select.admissible import why_inadmissible
from ...select.heuristic import choose
from ...spec import AttentionSpec


@dataclass(frozen=True)
class Sizes:
    """Of every case. ``capacity`` is a multiple of the pages' sizes; latents have the columns that their kernel with a
    producer warp is for, where a GPU runs it."""

    head_dim: int
    capacity: int
    latent_dim: int
    rope_dim: int


# Enough tiles to fill any pipeline, and as few bytes as thousands of sequences ask for.
GPU_SIZES = Sizes(head_dim=128, capacity=640, latent_dim=512, rope_dim=64)
# Triton's interpreter takes a millisecond for every operation.
INTERPRETER_SIZES = Sizes(head_dim=16, capacity=80, latent_dim=32, rope_dim=16)


@dataclass(frozen=True)
class Group:
    """``key`` is a tuning key's name without batch and capacity, with ``{d}``, ``{l}`` and ``{r}`` for sizes;
    ``changes`` are made to the heuristic's configuration."""

    template: str
    feature: str
    key: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.template}: {self.feature}"

    def spec(self, sizes: Sizes, batch: int) -> AttentionSpec:
        text = self.key.format(d=sizes.head_dim, l=sizes.latent_dim, r=sizes.rope_dim)
        heads, _, features = text.partition(" with ")
        key = parse_key(f"{heads.replace(' bhsd', ' b1 s128 bhsd')}{' ' + features if features else ''}")
        spec = key.at(batch=batch, capacity=sizes.capacity).spec()
        # Scores come this far: a cap well above them would do next to nothing.
        return spec if spec.softcap is None else replace(spec, softcap=2.0)

    def config(self, spec: AttentionSpec, device: DeviceProfile) -> KernelConfig:
        """Raises:
        Refused, InadmissibleConfigError: ``device`` cannot run it.
        """
        config = choose(spec, device)
        if config.load_path is LoadPath.PRODUCER and "load_path" in self.changes:
            config = replace(config, load_path=LoadPath.POINTER, block_kv=32, num_warps=8)
        if self.changes.get("load_path") is LoadPath.PRODUCER:
            config = config.with_producer()
        elif device.backend == "interpreter":
            config = replace(config, block_kv=16)  # so that few keys are several tiles
        config = replace(config, **self.changes)
        reason = why_inadmissible(spec, config, device)
        if reason is not None:
            raise InadmissibleConfigError(config.encode(), reason)
        return config


_SPLITS = {"num_splits": 3, "partition": Partition.EVEN}
_DENSE = "bfloat16 4q/2kv d{d} q1 bhsd-tma"
_LATENT = "bfloat16 16q/1kv d{l} q1 bhsd-tma"


def _dense(feature: str, key: str, **changes: Any) -> Group:
    return Group("split_kv_decode", feature, key, changes)


def _quantised(feature: str, key: str, **changes: Any) -> Group:
    return Group("quantised_decode", feature, key, changes)


def _latent(feature: str, key: str, **changes: Any) -> Group:
    return Group("latent_decode", feature, key, changes)


GROUPS: tuple[Group, ...] = (
    _dense("pointers", f"{_DENSE} lengths", load_path=LoadPath.POINTER),
    _dense("float16", "float16 4q/2kv d{d} q1 bhsd-tma lengths"),
    _dense("float32", "float32 4q/2kv d{d} q1 bhsd-tma lengths"),
    _dense("splits, merged after", f"{_DENSE} lengths", **_SPLITS, merge=Merge.SEPARATE),
    _dense("splits, merged in place", f"{_DENSE} lengths", **_SPLITS, merge=Merge.INPLACE),
    _dense("balanced splits", f"{_DENSE} lengths", num_splits=3, partition=Partition.BALANCED, merge=Merge.SEPARATE),
    _dense("streamed", f"{_DENSE} lengths", num_splits=3, partition=Partition.STREAMED, merge=Merge.SEPARATE),
    _dense("TMA", f"{_DENSE} lengths", load_path=LoadPath.TMA),
    _dense("keys first", f"{_DENSE} lengths", operand_order=OperandOrder.KQ, num_stages=2, num_warps=4),
    _dense("rows padded to a warpgroup's", f"{_DENSE} lengths", operand_order=OperandOrder.QK64, num_warps=4),
    _dense("prefetched", f"{_DENSE} lengths", prefetch_depth=2),
    _dense("bool mask", f"{_DENSE} bool"),
    _dense("mask of each row", "bfloat16 4q/2kv d{d} q2 bhsd-tma bool_rows"),
    _dense("additive mask", "float16 4q/2kv d{d} q1 bhsd-tma additive-float16"),
    _dense("causal queries", "bfloat16 4q/2kv d{d} q4 bhsd-tma causal_lengths"),
    _dense("soft cap", f"{_DENSE} lengths with softcap"),
    _dense("sinks", f"{_DENSE} lengths with sink"),
    _dense("pages", f"{_DENSE} lengths with page16"),
    _quantised("e4m3", "bfloat16/float8_e4m3fn 4q/2kv d{d} q1 bhsd-tma lengths"),
    _quantised("e5m2", "bfloat16/float8_e5m2 4q/2kv d{d} q1 bhsd-tma lengths"),
    _quantised("int8", "bfloat16/int8 4q/2kv d{d} q1 bhsd-tma lengths"),
    _quantised("int8, float16 queries, splits", "float16/int8 4q/2kv d{d} q1 bhsd-tma lengths", **_SPLITS),
    _quantised(
        "int8, scales of tokens",
        "bfloat16/int8 4q/2kv d{d} q1 bhsd-tma bool with key_token_scales value_token_scales",
    ),
    _quantised(
        "uint8, zero points of tokens",
        "bfloat16/uint8 4q/2kv d{d} q1 bhsd-tma lengths with key_token_scales key_zeros value_token_scales value_zeros",
    ),
    _quantised(
        "uint8, minima of groups",
        "bfloat16/uint8 4q/2kv d{d} q1 bhsd-tma lengths with key_groups key_minima value_groups value_minima",
    ),
    _quantised(
        "uint4",
        "float16/uint4_halves 4q/2kv d{d} q1 bhsd-tma lengths with key_token_scales key_zeros value_token_scales",
    ),
    _quantised("int8, pages", "bfloat16/int8 4q/2kv d{d} q1 bhsd-tma lengths with page16"),
    _quantised("e4m3, soft cap, sinks", "bfloat16/float8_e4m3fn 4q/2kv d{d} q1 bhsd-tma lengths with sink softcap"),
    _latent("pointers", f"{_LATENT} lengths with rope{{r}}", load_path=LoadPath.POINTER),
    _latent("TMA", f"{_LATENT} lengths with rope{{r}}", load_path=LoadPath.TMA),
    _latent("producer", f"{_LATENT} lengths with rope{{r}}", load_path=LoadPath.PRODUCER),
    _latent("producer, splits", f"{_LATENT} bool with rope{{r}}", load_path=LoadPath.PRODUCER, num_splits=3),
    _latent("splits", f"{_LATENT} bool with rope{{r}}", load_path=LoadPath.POINTER, **_SPLITS),
    _latent("soft cap, sinks", f"{_LATENT} lengths with rope{{r}} sink softcap", load_path=LoadPath.POINTER),
)


def runnable(group: Group, sizes: Sizes, batch: int, device: DeviceProfile) -> tuple[AttentionSpec, KernelConfig] | str:
    """What a launch of ``batch`` cases is, or why ``device`` cannot run it."""
    spec = group.spec(sizes, batch)
    try:
        return spec, group.config(spec, device)
    except (Refused, InadmissibleConfigError) as refusal:
        return str(refusal)
