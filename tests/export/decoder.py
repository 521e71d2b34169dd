"""A small decode step to export: two kinds of attention, caches that the step writes to, one kept as a buffer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, KV_HEADS, HEAD_DIM, CAPACITY, MEMORY = 4, 2, 16, 24, 10
WIDTH = HEADS * HEAD_DIM


class CachedAttention(nn.Module):
    """Grouped-query SDPA over a static cache (2, batch, KV_HEADS, CAPACITY, HEAD_DIM), its KV heads repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, WIDTH + 2 * KV_HEADS * HEAD_DIM, bias=False)

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), 1)
        keys, values = cache[0], cache[1]
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        mask = (torch.arange(CAPACITY, device=x.device) <= position)[None, None, None]
        keys, values = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (keys, values))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)


class MemoryAttention(nn.Module):
    """Products around a softmax, over keys that are part of the program, with a bias that falls at each step."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.register_buffer("memory", torch.randn(2, 1, HEADS, MEMORY, HEAD_DIM, generator=generator))
        self.register_buffer("bias", torch.zeros(MEMORY))

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
        keys, values = self.memory.expand(-1, x.shape[0], -1, -1, -1).unbind(0)
        scores = torch.matmul(q, keys.transpose(2, 3)) * HEAD_DIM**-0.5 + self.bias
        self.bias.sub_(torch.arange(MEMORY, device=x.device))
        return torch.matmul(F.softmax(scores, -1), values).transpose(1, 2).flatten(2)


class Decoder(nn.Module):
    """One step: x (batch, 1, WIDTH), position (1,) of the key that it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.cached = CachedAttention()
        self.over_memory = MemoryAttention()

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        x = x + self.cached(x, cache, position)
        with torch.no_grad():
            return x + self.over_memory(x)


def decoder(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """Always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Decoder().eval().to(device, dtype)


def step_inputs(
    step: int, batch: int = 2, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """``x`` and ``position`` of one step."""
    x = torch.randn(batch, 1, WIDTH, generator=torch.Generator().manual_seed(step))
    return x.to(device, dtype), torch.tensor([step], device=device)


def empty_cache(batch: int = 2, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros: what is not written yet."""
    return torch.zeros(2, batch, KV_HEADS, CAPACITY, HEAD_DIM, device=device, dtype=dtype)
