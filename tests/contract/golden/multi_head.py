"""``nn.MultiheadAttention`` without what it projects: the output of each of its heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefetch_compiler.spec import AttentionSpec, MaskKind, TensorLayout

from .graph import DEVICE, Draw, Golden, Inputs

BATCH, KEYS, WIDTH = 2, 20, 64


@dataclass(frozen=True)
class MultiHead:
    """One call of a module that projects its output by the identity.

    Attributes:
        masked: whether an additive mask (q, keys) is given.
        padded: whether the first sequence begins with padding.
        turned: whether its heads project keys and values as the ones before them do in another module.
    """

    name: str
    heads: int = 4
    q_len: int = 3
    masked: bool = False
    padded: bool = False
    turned: bool = False

    @property
    def golden(self) -> Golden:
        return Golden(self.name, self.program(), self.steps, (self.spec(),))

    def program(self) -> Callable[..., Tensor]:
        torch.manual_seed(2)
        module = nn.MultiheadAttention(WIDTH, self.heads, batch_first=True).to(DEVICE).eval()
        with torch.no_grad():
            module.out_proj.weight.copy_(torch.eye(WIDTH))
            module.out_proj.bias.zero_()
            if self.turned:
                for projected in module.in_proj_weight[WIDTH:].split(WIDTH):
                    projected.copy_(projected.roll(WIDTH // self.heads, 0))
        heads = self.heads

        def attend(q: Tensor, memory: Tensor, mask: Tensor | None, hidden: Tensor | None) -> Tensor:
            out: Tensor = module(
                q, memory, memory, need_weights=False, attn_mask=mask, key_padding_mask=hidden
            )[0]  # fmt: skip
            return out.unflatten(2, (heads, -1)).transpose(1, 2)

        return attend

    def steps(self) -> Sequence[Inputs]:
        draw = Draw(11)
        hidden = torch.zeros(BATCH, KEYS, dtype=torch.bool, device=DEVICE)
        hidden[0, :7] = True
        return [
            {
                "q": draw.normal(BATCH, self.q_len, WIDTH),
                "memory": draw.normal(BATCH, KEYS, WIDTH),
                "mask": draw.normal(self.q_len, KEYS) if self.masked else None,
                "hidden": hidden if self.padded else None,
            }
        ]

    def spec(self) -> AttentionSpec:
        head_dim = WIDTH // self.heads
        # (keys, batch, heads * head_dim), as the module projects them.
        layout = TensorLayout(WIDTH, head_dim, BATCH * WIDTH)
        kind = MaskKind.ADDITIVE if self.masked or self.padded else MaskKind.NONE
        return AttentionSpec(
            batch=BATCH, query_heads=self.heads, kv_heads=self.heads, q_len=self.q_len, kv_len=KEYS, head_dim=head_dim,
            value_dim=head_dim, dtype=torch.float32, scale=1 / math.sqrt(head_dim), key_layout=layout,
            value_layout=layout, mask=kind, mask_dtype=torch.float32 if kind is MaskKind.ADDITIVE else None,
            mask_per_row=kind is MaskKind.ADDITIVE,
        )  # fmt: skip


GOLDEN = tuple(one.golden for one in (MultiHead("multi_head"), MultiHead("multi_head_padded", padded=True)))
