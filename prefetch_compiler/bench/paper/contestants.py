"""What takes part in a case: each launches one decode attention over a cache of the case, given by its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ...config import KernelConfig
from ...lower.launch import launch_decode
from .inputs import CaseInputs, Problem
from .kernel import paper_call
from .variant import PREFETCH_OF, Column

# Launches over one cache, and returns the output: (batch, query_heads, 1, head_dim).
Launch = Callable[[int], Tensor]


@dataclass(frozen=True)
class Contestant:
    """``detail`` says which configuration it is, and where that came from."""

    column: Column
    launch: Launch
    detail: str


def paper_style(inputs: CaseInputs, column: Column, warps: int) -> Contestant:
    """The paper's kernel, one of its variants; writes an output that was allocated with the pages."""

    def launch(cache: int) -> Tensor:
        paged = inputs.paged[cache]
        paper_call(paged, PREFETCH_OF[column], warps, inputs.problems[cache].scale).launch()
        return paged.out[:, :, None]

    return Contestant(column, launch, f"{warps} warps")


def ours(inputs: CaseInputs, column: Column, config: KernelConfig, source: str) -> Contestant:
    """Our kernel on the contiguous cache."""

    def launch(cache: int) -> Tensor:
        problem = inputs.problems[cache]
        return launch_decode(
            problem.q, problem.k, problem.v, None, None, is_causal=False, scale=problem.scale, heads_first=True,
            config=config,
        )  # fmt: skip

    return Contestant(column, launch, f"{config.encode()}, {source}")


def cudnn(inputs: CaseInputs) -> Contestant:
    """PyTorch's SDPA, by cuDNN alone, on the contiguous cache. Where that backend refuses ``enable_gqa``, the query
    heads of a group go in as query rows of one head: the same sums, without a mask. It raises where both are refused.
    """
    grouped = inputs.case.model.group > 1
    version = f"cuDNN {torch.backends.cudnn.version()}"

    def launch(cache: int) -> Tensor:
        problem = inputs.problems[cache]
        return _sdpa_by_cudnn(problem.q, problem, grouped)

    def launch_packed(cache: int) -> Tensor:
        problem = inputs.problems[cache]
        batch, kv_heads, _, head_dim = problem.k.shape
        return _sdpa_by_cudnn(problem.q.view(batch, kv_heads, -1, head_dim), problem, False).reshape(problem.q.shape)

    if not grouped:
        return Contestant(Column.CUDNN, launch, version)
    try:
        launch(0)
    except RuntimeError:
        return Contestant(Column.CUDNN, launch_packed, f"{version}, groups as query rows: enable_gqa is refused")
    return Contestant(Column.CUDNN, launch, f"{version}, enable_gqa")


def _sdpa_by_cudnn(q: Tensor, problem: Problem, grouped: bool) -> Tensor:
    with torch.no_grad(), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return scaled_dot_product_attention(q, problem.k, problem.v, scale=problem.scale, enable_gqa=grouped)
