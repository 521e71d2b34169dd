"""One attention over a cache in two parts, each with its log-sum-exp, merged outside: a prefix and what follows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from prefetch_compiler.spec import AttentionSpec, MaskKind

from .graph import DEVICE, Draw, Golden, Inputs, heads_first, note, repeat_kv

BATCH, KV_HEADS, GROUP, PREFIX_LEN, KV_LEN, DIM = 3, 2, 2, 12, 20, 16
HEADS = KV_HEADS * GROUP
SCALE = 1 / math.sqrt(DIM)

Part = tuple[Tensor, Tensor]
Parts = Callable[[Tensor, Tensor, Tensor, Tensor | None], Part]


def _scores(q: Tensor, keys: Tensor, visible: Tensor | None) -> Tensor:
    scores = q @ repeat_kv(keys, GROUP).transpose(-1, -2) * SCALE
    return scores if visible is None else scores.masked_fill(~visible, -math.inf)


def by_softmax(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Part:
    scores = _scores(q, keys, visible)
    return scores.softmax(-1) @ repeat_kv(values, GROUP), torch.logsumexp(scores, -1)


def by_exponentials(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Part:
    """Maximum, sum and quotient, as a kernel has them."""
    scores = _scores(q, keys, visible)
    maximum = scores.amax(-1, keepdim=True)
    powers = torch.exp(scores - maximum)
    total = powers.sum(-1, keepdim=True)
    return (powers / total) @ repeat_kv(values, GROUP), (maximum + torch.log(total)).squeeze(-1)


def by_lse(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Part:
    scores = _scores(q, keys, visible)
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse[..., None]) @ repeat_kv(values, GROUP), lse


def by_groups(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Part:
    """Query heads of a group in a dimension of their own."""
    batch, _, q_len, dim = q.shape
    grouped = q.view(batch, KV_HEADS, GROUP, q_len, dim)
    scores = torch.einsum("bhgqd,bhkd->bhgqk", grouped, keys) * SCALE
    if visible is not None:
        scores = scores.masked_fill(~visible[:, :, None], -math.inf)
    out = torch.einsum("bhgqk,bhkd->bhgqd", scores.softmax(-1), values)
    return out.flatten(1, 2), torch.logsumexp(scores, -1).flatten(1, 2)


def by_flex(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Part:
    def score_mod(score: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
        assert visible is not None
        return torch.where(visible[b, 0, 0, n], score, -math.inf)

    given: dict[str, Any] = {"score_mod": None if visible is None else score_mod, "enable_gqa": True, "scale": SCALE}
    given["return_aux"] = flex.AuxRequest(lse=True)
    if torch.compiler.is_compiling():
        out, aux = flex.flex_attention(q, keys, values, **given)
    else:
        with mock.patch.object(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True):
            out, aux = flex.flex_attention(q, keys, values, **given)
    return out, aux.lse


def by_log_add(first: Part, second: Part) -> Part:
    lse = torch.logaddexp(first[1], second[1])
    shares = [torch.exp(part[1] - lse)[..., None] for part in (first, second)]
    return first[0] * shares[0] + second[0] * shares[1], lse


def by_shares(first: Part, second: Part) -> Part:
    lses = torch.stack([first[1], second[1]])
    out = (torch.softmax(lses, 0)[..., None] * torch.stack([first[0], second[0]])).sum(0)
    return out, torch.logsumexp(lses, 0)


def evenly(first: Part, second: Part) -> Part:
    """Which is no attention over both."""
    return (first[0] + second[0]) / 2, torch.logaddexp(first[1], second[1])


@dataclass(frozen=True)
class Partial:
    """One attention.

    Attributes:
        shared: whether all sequences have one prefix, which is stored once.
        sink: whether the merged result gives a share to a sink, as transformers does it with FlexAttention.
        recogniser: of both parts.
    """

    name: str
    part: Parts = by_softmax
    merge: Callable[[Part, Part], Part] = by_log_add
    q_len: int = 1
    shared: bool = False
    masked: bool = True
    sink: bool = False
    recogniser: str = "recognise_softmax_chain"

    dtype = torch.float32
    heads = HEADS
    length_dim = 2

    @property
    def golden(self) -> Golden:
        return Golden(self.name, self.program(), self.steps, self.specs(), self.recogniser)

    def program(self) -> Callable[..., Tensor]:
        given = self

        def attend(
            q: Tensor, prefix_keys: Tensor, prefix_values: Tensor, keys: Tensor, values: Tensor, visible: Tensor,
            sink: Tensor,
        ) -> Tensor:  # fmt: skip
            given._note(q, prefix_keys, prefix_values, keys, values, visible, sink)
            if given.shared:
                prefix_keys, prefix_values = (x.expand(q.shape[0], -1, -1, -1) for x in (prefix_keys, prefix_values))
            first = given.part(q, prefix_keys, prefix_values, None)
            second = given.part(q, keys, values, visible if given.masked else None)
            out, lse = given.merge(first, second)
            return out * torch.sigmoid(lse - sink[:, None])[..., None] if given.sink else out

        return attend

    def _note(
        self, q: Tensor, prefix_keys: Tensor, prefix_values: Tensor, keys: Tensor, values: Tensor, visible: Tensor,
        sink: Tensor,
    ) -> None:  # fmt: skip
        whole = [
            torch.cat([one.expand(q.shape[0], -1, -1, -1), other], 2)
            for one, other in ((prefix_keys, keys), (prefix_values, values))
        ]
        mask = torch.cat([visible.new_ones(BATCH, 1, 1, PREFIX_LEN), visible], -1)
        note(q, *whole, mask if self.masked else None, SCALE, None, sink if self.sink else None)

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(13)
        prefixes = 1 if self.shared else BATCH
        held = torch.tensor([KV_LEN, 1, 9], device=DEVICE)
        return [
            {
                "q": draw.normal(BATCH, HEADS, self.q_len, DIM),
                "prefix_keys": draw.normal(prefixes, KV_HEADS, PREFIX_LEN, DIM),
                "prefix_values": draw.normal(prefixes, KV_HEADS, PREFIX_LEN, DIM),
                "keys": draw.normal(BATCH, KV_HEADS, KV_LEN, DIM),
                "values": draw.normal(BATCH, KV_HEADS, KV_LEN, DIM),
                "visible": torch.arange(KV_LEN, device=DEVICE) < held[:, None, None, None],
                "sink": draw.normal(HEADS) + 2,
            }
        ]

    def specs(self) -> tuple[AttentionSpec, AttentionSpec]:
        # The queries of all sequences are one group where the prefix is stored once.
        prefix = self._spec(1, BATCH * HEADS, PREFIX_LEN) if self.shared else self._spec(BATCH, HEADS, PREFIX_LEN)
        return prefix, self._spec(BATCH, HEADS, KV_LEN, MaskKind.BOOL if self.masked else MaskKind.NONE)

    def _spec(self, batch: int, heads: int, kv_len: int, mask: MaskKind = MaskKind.NONE) -> AttentionSpec:
        return AttentionSpec(
            batch=batch,
            query_heads=heads,
            kv_heads=KV_HEADS,
            q_len=self.q_len,
            kv_len=kv_len,
            head_dim=DIM,
            value_dim=DIM,
            dtype=torch.float32,
            scale=SCALE,
            key_layout=heads_first(KV_HEADS, kv_len, DIM),
            value_layout=heads_first(KV_HEADS, kv_len, DIM),
            mask=mask,
            mask_dtype=torch.bool if mask is MaskKind.BOOL else None,
            lse=self.merge is not evenly or self.sink,
        )


FLEX: dict[str, Any] = {"part": by_flex, "recogniser": "recognise_marked_flex"}
PARTIAL: tuple[Partial, ...] = (
    Partial("partial"),
    Partial("partial_by_exponentials", by_exponentials, by_shares, q_len=3),
    Partial("partial_by_lse", by_lse, shared=True, sink=True),
    Partial("partial_by_groups", by_groups, shared=True, q_len=2),
    Partial("partial_by_flex", **FLEX, merge=by_shares, shared=True, sink=True, q_len=2),
)
GOLDEN = tuple(one.golden for one in PARTIAL)
