"""The operands of a case: several contiguous caches, the same bytes as scattered pages, and queries.

A run goes through the caches in turn, so that none is still in L2 when its turn comes again. Everything is allocated
here, before any CUDA graph is captured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tuning.inputs import random_cache, random_queries
from .case import PaperCase
from .errors import CaseTooLargeError
from .kernel import BLOCK_KV, PagedTensors
from .paging import blocks_of, paged_copy, scattered_table

# What the caches of a case hold together, in multiples of L2.
L2_MULTIPLE = 4
MAX_CACHES = 256
# Of the free memory, what a case may take, and what checking results takes beside its caches.
MEMORY_FRACTION = 0.85
CHECKING_BYTES = 6 << 30


@dataclass(frozen=True)
class Problem:
    """One attention as ``error_bound`` takes it: q (batch, query_heads, 1, head_dim), k and v contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    mask: Tensor | None = None
    is_causal: bool = False
    softcap: float | None = None
    sink: Tensor | None = None


@dataclass(frozen=True)
class CaseInputs:
    """Cache number ``i`` is ``problems[i]`` and, as pages, ``paged[i]``; both read the same queries.

    ``q_source`` holds the queries of every cache: a small kernel writes them before each launch, as a model's would.
    """

    case: PaperCase
    q_source: Tensor
    problems: tuple[Problem, ...]
    paged: tuple[PagedTensors, ...]

    @property
    def caches(self) -> int:
        return len(self.problems)

    @property
    def device(self) -> torch.device:
        return self.q_source.device

    def write_queries(self, cache: int) -> None:
        """By a kernel: a copy would be captured as one of the driver's, which no launch can overlap."""
        torch.mul(self.q_source, 1.0, out=self.problems[cache].q)


def caches_for(kv_bytes: int, l2_bytes: int) -> int:
    """Caches that together hold L2_MULTIPLE times what L2 does, within limits."""
    return max(1, min(MAX_CACHES, math.ceil(L2_MULTIPLE * l2_bytes / kv_bytes)))


def needed_bytes(case: PaperCase, caches: int) -> int:
    """Device memory of a case: every cache twice, the second time in whole pages, and room to check results."""
    blocks = blocks_of(case.context)
    paged = case.kv_bytes // case.context * blocks * BLOCK_KV
    return caches * (case.kv_bytes + paged) + CHECKING_BYTES


def require_room(case: PaperCase, caches: int, free_bytes: int) -> None:
    """Raises: CaseTooLargeError: the case does not fit."""
    needed = needed_bytes(case, caches)
    if needed > free_bytes * MEMORY_FRACTION:
        raise CaseTooLargeError(needed, free_bytes)


def make_inputs(case: PaperCase, caches: int, device: torch.device, seed: int) -> CaseInputs:
    """Normal K, V and queries, and block tables, all drawn from ``seed``."""
    generator = torch.Generator(device).manual_seed(seed)
    spec = case.spec()
    q_source = random_queries(spec, generator)
    lengths = torch.full((case.batch,), case.context, dtype=torch.int32, device=device)
    problems, paged = [], []
    for _ in range(caches):
        k, v = random_cache(spec, generator)
        table = scattered_table(case.batch, blocks_of(case.context), generator)
        problem = Problem(q_source.clone(), k, v, spec.scale)
        q = problem.q[:, :, 0]
        problems.append(problem)
        paged.append(PagedTensors(q, paged_copy(k, table), paged_copy(v, table), table, lengths, torch.empty_like(q)))
    return CaseInputs(case, q_source, tuple(problems), tuple(paged))
