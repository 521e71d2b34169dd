"""Tensor-parallel decode, as two ranks or more:

    torchrun --nproc-per-node 2 docs/examples/tensor_parallel.py

Without as many GPUs the ranks run on the CPU, in Triton's interpreter. Each rank has its share of the heads and of the
KV cache. Before the first step the ranks compare what they would select kernels from.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 8, 4, 64, 128
OPTIONS = {"kvprefetch.strict": True}


class Attention(nn.Module):
    """Grouped-query attention of one new token over a static cache (K or V, batch, kv_head, key, head_dim)."""

    def __init__(self) -> None:
        super().__init__()
        width = HEADS * HEAD_DIM
        self.q = nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, KV_HEADS * HEAD_DIM, bias=False) for _ in range(2))
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        # -1, and not HEADS: a rank has as many heads as its share of the weights makes.
        q, k, v = (layer(x).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        cache[0].index_copy_(2, position, k)
        cache[1].index_copy_(2, position, v)
        mask = (torch.arange(CAPACITY, device=x.device) <= position)[None, None, None]
        out = F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=mask, enable_gqa=True)
        return self.o(out.transpose(1, 2).flatten(2))


def parallelize(model: Attention, mesh: DeviceMesh) -> None:
    """Heads divided among the ranks. The layers hand on local tensors, which is what kernels can be launched for."""
    plan = {"q": ColwiseParallel(), "k": ColwiseParallel(), "v": ColwiseParallel(), "o": RowwiseParallel()}
    parallelize_module(model, mesh, plan)


def require_equal_selection(options: dict[str, Any]) -> None:
    """Stop every rank, before it compiles anything, unless all would select alike."""
    from prefetch_compiler import selection_digest

    digests: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(digests, selection_digest(options))
    if len(set(digests)) > 1:
        raise SystemExit(f"ranks would select different kernels: {digests}; compare GPUs, databases and versions")


def main() -> None:
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    device = "cuda" if torch.cuda.device_count() >= world else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank)
    else:
        os.environ["TRITON_INTERPRET"] = "1"
    mesh = init_device_mesh(device, (world,))

    torch.manual_seed(0)
    model = Attention().to(device).eval()
    x = torch.randn(2, 1, HEADS * HEAD_DIM, device=device)
    position = torch.tensor([0], device=device)
    cache = torch.zeros(2, 2, KV_HEADS, CAPACITY, HEAD_DIM, device=device)
    with torch.no_grad():
        expected = model(x, cache.clone(), position)
        parallelize(model, mesh)
        own_cache = cache.chunk(world, dim=2)[mesh.get_local_rank()].clone()

        require_equal_selection(OPTIONS)
        step = torch.compile(model, backend="kvprefetch", fullgraph=True, options=OPTIONS)
        out = step(x, own_cache, position)
    print(
        f"rank {mesh.get_local_rank()}: largest difference from the unsharded model {(out - expected).abs().max():.1e}"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
