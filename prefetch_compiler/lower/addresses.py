"""What a configuration may do at the addresses of a call, which no spec can tell."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..config import KernelConfig, LoadPath, OperandOrder, PrefetchKind
from ..spec import QUANTISED_FORMATS

_ALIGNMENT = 16


def readable(k: Tensor, v: Tensor) -> bool:
    """Whether kernels can read a cache where it lies: numbers of one byte are read in pairs."""
    return k.dtype not in QUANTISED_FORMATS or (k.data_ptr() | v.data_ptr()) % 2 == 0


def for_these_addresses(config: KernelConfig, k: Tensor, v: Tensor) -> KernelConfig:
    """TMA and bulk prefetch need 16-byte aligned addresses, and so do keys-first products (see ``why_inadmissible``)
    other than those over a quantised cache, which have no other order."""
    if (k.data_ptr() | v.data_ptr()) % _ALIGNMENT == 0:
        return config
    if config.load_path is LoadPath.PRODUCER:
        # Two warp groups share its tiles in shared memory; eight warps that load theirs themselves take smaller ones.
        config = replace(config, block_kv=32, num_warps=8, num_stages=3)
    order = config.operand_order if k.dtype in QUANTISED_FORMATS else OperandOrder.QK
    return replace(config, load_path=LoadPath.POINTER, prefetch_kind=PrefetchKind.LINE, operand_order=order)
