"""A decode step whose lengths change in place from replay to replay, and which checks itself: which lengths are next,
the attention over them and the comparison with the oracle are all on the device, in one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from prefetch_compiler.bench.numerics.contents import normal
from prefetch_compiler.bench.numerics.group import GROUPS, Group, Sizes
from prefetch_compiler.bench.numerics.problem import build, edge_lengths
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.device import profile
from prefetch_compiler.error_bound import GivenProblem, yardstick
from prefetch_compiler.lower.launch import launch_decode
from prefetch_compiler.recognize.bounds import mask_bounds
from prefetch_compiler.spec import AttentionSpec

# What the launches of a step do differently: how splits are merged, what says the lengths, how caches are read.
REPLAYED = tuple(
    group
    for group in GROUPS
    if group.feature
    in (
        "splits, merged after", "splits, merged in place", "balanced splits", "streamed", "bool mask", "pages", "int8",
        "int8, scales of tokens", "pointers", "TMA", "producer", "producer, splits", "splits",
    )
)  # fmt: skip
ORDER = 4096
SEED = 20


class ReplayedStep:
    """``step()`` computes the attention at the next of ``vectors`` lengths and counts what is wrong; it reads nothing
    back. ``mismatches`` counts outputs that err more than they may or differ in a bit from those of the same lengths
    before; ``steps`` counts steps."""

    def __init__(self, group: Group, sizes: Sizes, batch: int, vectors: int, device: torch.device) -> None:
        spec = group.spec(sizes, batch)
        config = group.config(spec, profile(device))
        self.spec, self.config = spec, config
        self.cases = build(spec, config, SEED, device, (normal,))
        self.table = _length_table(config, spec, vectors).to(device)
        self.order = torch.randint(0, vectors, (ORDER,), generator=torch.Generator().manual_seed(SEED)).to(device)
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self.mask = torch.zeros(batch, 1, 1, spec.kv_len, dtype=torch.bool, device=device)
        self.position = torch.arange(spec.kv_len, device=device)
        self.answers, self.bounds = self._oracle()
        self.seen = torch.full_like(self.answers, torch.nan, dtype=spec.dtype)
        self.steps, self.mismatches = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))

    def _oracle(self) -> tuple[Tensor, Tensor]:
        """Of every vector of lengths: (vectors, batch, heads, q_len, dim) and (vectors, batch, q_len), float64."""
        spec, cases = self.spec, self.cases
        found = []
        for lengths in self.table:
            mask = (self.position < lengths[:, None])[:, None, None]
            problem = GivenProblem(cases.q, cases.k, cases.v, mask, False, spec.scale, spec.softcap, cases.sink)
            found.append(yardstick(problem))
        return torch.stack([one.answer for one in found]), torch.stack([one.bound for one in found])

    def step(self) -> None:
        row = self.order.index_select(0, self.steps % ORDER)
        self.lengths.copy_(self.table.index_select(0, row)[0])
        self._check(self.attend(), row)
        self.steps.add_(1)

    def attend(self) -> Tensor:
        spec, cases = self.spec, self.cases
        mask = bounds = None
        if spec.masked:
            self.mask.copy_((self.position < self.lengths[:, None])[:, None, None])
            mask = self.mask.expand(spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
            bounds = mask_bounds(self.mask, spec.kv_len)
        return launch_decode(
            cases.q, cases.stored_k, cases.stored_v, mask, bounds, is_causal=False, scale=spec.scale, heads_first=True,
            config=self.config, k_scale=cases.k_scale, v_scale=cases.v_scale, table=cases.table,
            lengths=None if spec.masked else self.lengths, softcap=spec.softcap, sink=cases.sink, k_zero=cases.k_zero,
            v_zero=cases.v_zero, storage=cases.storage, rope=cases.rope,
        )  # fmt: skip

    def _check(self, out: Tensor, row: Tensor) -> None:
        error = (out.double() - self.answers.index_select(0, row)[0]).abs().amax((1, 3))
        before = self.seen.index_select(0, row)[0]
        other_bits = (out != before) & before.isfinite()
        # NaN is no smaller than anything.
        self.mismatches += (~(error <= self.bounds.index_select(0, row)[0])).sum() + other_bits.sum()
        self.seen.index_copy_(0, row, out[None])


def _length_table(config: KernelConfig, spec: AttentionSpec, vectors: int) -> Tensor:
    """int32 (vectors, batch): every edge in some sequence, and random lengths. Empty sequences are among them."""
    generator = torch.Generator().manual_seed(SEED)
    table = torch.randint(0, spec.kv_len + 1, (vectors, spec.batch), generator=generator, dtype=torch.int32)
    edges = torch.tensor(edge_lengths(config, spec.kv_len), dtype=torch.int32)
    flat = table.flatten()
    # A half at edges, one after the other.
    at = torch.randperm(len(flat), generator=generator)[: len(flat) // 2]
    flat[at] = edges[torch.arange(len(at)) % len(edges)]
    return flat.view(vectors, spec.batch)
