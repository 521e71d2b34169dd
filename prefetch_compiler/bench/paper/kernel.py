"""Launching ``templates/paper_decode.py``.

The template is named here and not in the templates' manifest: selection, tuning records and the contract suites take
whatever the manifest lists for a kernel that may serve a model, and this one only takes part in a benchmark. So no
record's template hash depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefetch_compiler.templates.manifest import Template

from ...device import interpreting
from ...lower.specialise import KernelCall
from .variant import Prefetch

if TYPE_CHECKING:
    from ...spec import AttentionSpec

# Keys of one block, as in vLLM.
BLOCK_KV = 16
# Warps of a program that are tried.
WARPS = (1, 2, 4)


def _refusal(spec: AttentionSpec) -> str:
    return "only `kvprefetch bench paper` launches it"


PAPER_DECODE = Template(name="paper_decode", entries=("paper_decode.paper_decode",), refusal=_refusal)


@dataclass(frozen=True)
class PagedTensors:
    """Operands of one launch, all contiguous.

    Attributes:
        q, out: (batch, query_heads, head_dim).
        k, v: (pages, kv_heads, 16, head_dim).
        table: int32 (batch, blocks), the page of each block of a sequence.
        lengths: int32 (batch,), keys that each sequence holds, at least 1.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    table: Tensor
    lengths: Tensor
    out: Tensor


def paper_call(tensors: PagedTensors, prefetch: Prefetch, warps: int, scale: float) -> KernelCall:
    """The launch; nothing is allocated, so it may be captured."""
    batch, query_heads, head_dim = tensors.q.shape
    kv_heads = tensors.k.shape[1]
    arguments = {
        "q_ptr": tensors.q,
        "k_ptr": tensors.k,
        "v_ptr": tensors.v,
        "table_ptr": tensors.table,
        "lengths_ptr": tensors.lengths,
        "out_ptr": tensors.out,
        "score_scale": scale * math.log2(math.e),
        "group": query_heads // kv_heads,
        "kv_heads": kv_heads,
        "table_stride": tensors.table.stride(0),
        "depth": prefetch.depth,
        "issue": int(prefetch.issued),
    }
    constants = {
        "HEAD_DIM": head_dim,
        "BLOCK_KV": BLOCK_KV,
        "PREFETCH": prefetch.compiled,
        "EMULATED": interpreting(),
    }
    kernel = PAPER_DECODE.load("paper_decode").paper_decode
    return KernelCall(kernel, (query_heads, batch), arguments, constants, {"num_warps": warps, "num_stages": 1})


def example_tensors(head_dim: int, device: torch.device | str = "meta") -> PagedTensors:
    """Operands to compile by: the binary depends on dtype and head_dim alone."""
    q = torch.empty((1, 1, head_dim), dtype=torch.float16, device=device)
    pages = torch.empty((1, 1, BLOCK_KV, head_dim), dtype=torch.float16, device=device)
    table = torch.empty((1, 1), dtype=torch.int32, device=device)
    return PagedTensors(q, pages, pages, table, table[0], torch.empty_like(q))
