"""One rank of a tensor-parallel decode, a process: ``python -m tests.tensor_parallel.rank FOLDER RANK WORLD DEVICE``.

Runs some steps of the example's attention, divided by DTensor and by hand, and leaves in FOLDER what came of it.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from prefetch_compiler import selection_digest
from prefetch_compiler.report import collect_reports

from ..contract.uncompiled import graphs_run_uncompiled

EXAMPLE = Path(__file__).parents[2] / "docs/examples/tensor_parallel.py"
STEPS, BATCH = 2, 2


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("tensor_parallel_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where Dynamo looks for the globals of its functions
    spec.loader.exec_module(module)
    return module


example = load_example()


def whole_model(device: str) -> Any:
    """The same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return example.Attention().eval().to(device)


def step_inputs(device: str) -> list[tuple[Tensor, Tensor]]:
    """``x`` and ``position`` of each step."""
    generator = torch.Generator().manual_seed(1)
    width = example.HEADS * example.HEAD_DIM
    steps = [torch.randn(BATCH, 1, width, generator=generator) for _ in range(STEPS)]
    return [(x.to(device), torch.tensor([number], device=device)) for number, x in enumerate(steps)]


def empty_cache(device: str, ranks: int = 1) -> Tensor:
    shape = (2, BATCH, example.KV_HEADS // ranks, example.CAPACITY, example.HEAD_DIM)
    return torch.zeros(shape, device=device)


class DividedByHand(nn.Module):
    """The attention with this rank's rows of the projections; the ranks' outputs are added up."""

    def __init__(self, attention: Any, rank: int, world: int) -> None:
        super().__init__()
        self.attention = attention
        for name, dim in (("q", 0), ("k", 0), ("v", 0), ("o", 1)):
            layer = getattr(attention, name)
            layer.weight = nn.Parameter(layer.weight.detach().chunk(world, dim)[rank].clone())

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        out = self.attention(x, cache, position)
        dist.all_reduce(out)
        return out


def run(model: nn.Module, cache: Tensor, device: str) -> dict[str, Any]:
    """Outputs of the steps, the cache after them, and each site's verdict, spec, configuration and record."""
    torch._dynamo.reset()
    # On a CPU, minutes of C++ compiling are saved; the kernels run all the same.
    without_codegen: AbstractContextManager[Any] = graphs_run_uncompiled() if device == "cpu" else nullcontext()
    with without_codegen, collect_reports() as report, torch.no_grad():
        step = torch.compile(model, backend="kvprefetch", fullgraph=True, options=example.OPTIONS)
        outputs = [step(x, cache, position).cpu() for x, position in step_inputs(device)]
    return {"outputs": outputs, "cache": cache.cpu(), "sites": [site.to_dict() for site in report.sites]}


def stopped_by(options: dict[str, Any]) -> str:
    """What the example's check at start-up says to these options; nothing where it lets the rank go on."""
    try:
        example.require_equal_selection(options)
    except SystemExit as stop:
        return str(stop)
    return ""


def main(folder: Path, rank: int, world: int, device: str) -> None:
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=world)
    by_dtensor = whole_model(device)
    example.parallelize(by_dtensor, init_device_mesh(device, (world,)))
    by_hand = DividedByHand(whole_model(device), rank, world)
    result = {
        "dtensor": run(by_dtensor, empty_cache(device, world), device),
        "by hand": run(by_hand, empty_cache(device, world), device),
        "digest": selection_digest(example.OPTIONS),
        "alike": stopped_by(example.OPTIONS),
        "not alike": stopped_by({**example.OPTIONS, "kvprefetch.deterministic": rank > 0}),
    }
    torch.save(result, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
