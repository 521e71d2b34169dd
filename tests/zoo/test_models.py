"""Whole models through code that is really generated: Inductor's on a CPU, and CUDA graphs on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from prefetch_compiler.report import collect_reports

from .cell import Cell
from .decode import Decoded, decode
from .judge import assert_follows
from .models import LLAMA, named
from .quicker_interpreter import quicker_interpreter
from .workload import CHUNKS, PADDED, SINGLE, Workload
from .zoo_model import ZooModel

# One for each way in which decode attention is written with SDPA.
WAYS = [named(name) for name in ("Llama", "Qwen3", "Phi3", "Mixtral", "GPT-2", "Falcon", "Gemma3", "Whisper")]

# Triton's interpreter warns at every scalar that it converts: recording them takes longer than computing.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@cache
def _eager_and_exact(
    cell: Cell, dtype: torch.dtype = torch.float32, workload: Workload = PADDED
) -> tuple[Decoded, Decoded]:
    """Eager's run, and the same run in float64 on eager's tokens."""
    eager = decode(cell, workload, dtype=dtype)
    return eager, decode(cell, workload, dtype=torch.float64, fed=eager.fed)


def _compile(**options: Any) -> Any:
    return lambda model: torch.compile(model, backend="kvprefetch", **options)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``compiled_cell``: with a growing cache, whose second graph has symbolic lengths. Compiling C++ takes longer than
    all else: two layers and both caches are for --whole-zoo."""
    if "compiled_cell" not in metafunc.fixturenames:
        return
    quick = [(Cell(named("Qwen2"), cache="dynamic"), CHUNKS)]
    whole = [(Cell(LLAMA, cache="static"), SINGLE), (Cell(LLAMA, cache="dynamic"), PADDED)]
    runs = quick + whole if metafunc.config.getoption("whole_zoo") else quick
    metafunc.parametrize(("compiled_cell", "workload"), runs, ids=str)


@pytest.mark.skipif(
    torch.__version__ < "2.12" and not torch.cuda.is_available(),
    reason="Inductor of PyTorch 2.11 writes C++ for this step that does not compile, on its own too",
)
def test_decoding_through_inductors_code_follows_eager(compiled_cell: Cell, workload: Workload) -> None:
    cell = compiled_cell
    eager, exact = _eager_and_exact(cell, workload=workload)
    with collect_reports() as report, quicker_interpreter():
        compiled = decode(cell, workload, _compile(options={"kvprefetch.strict": True}))
    assert_follows(compiled, eager, exact)
    assert torch.equal(compiled.tokens, eager.tokens)
    assert len(report.lowered) == cell.model.sites * report.graphs


# Without Mixtral: which experts serve a token is decided by rounding in half precision.
@pytest.mark.gpu
@pytest.mark.parametrize("zoo_model", [way for way in WAYS if way.name != "Mixtral"], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_decoding_under_cuda_graphs_follows_eager(zoo_model: ZooModel, dtype: torch.dtype) -> None:
    cell = Cell(zoo_model)
    eager, exact = _eager_and_exact(cell, dtype)
    with collect_reports() as report:
        compiled = decode(cell, compile_model=_compile(mode="reduce-overhead"), dtype=dtype, fed=eager.fed)
    assert_follows(compiled, eager, exact)
    assert len(report.lowered) == zoo_model.sites * report.graphs
