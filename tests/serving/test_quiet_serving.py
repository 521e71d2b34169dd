"""Serving is quiet: after warm-up a decode step compiles nothing, opens nothing, says nothing and keeps no memory.

Here in Triton's interpreter and without code generation; on a GPU, tests/gpu/test_quiet_serving.py."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler import paged_decode_attention, quantise, quantised_decode_attention
from prefetch_compiler.lower import ops, precompile, rewrite
from prefetch_compiler.lower.specialise import KernelCall
from prefetch_compiler.report import collect_reports

from ..contract.uncompiled import graphs_run_uncompiled
from .quiet import audited, logged

pytestmark = [
    # Triton's interpreter warns at every scalar that it converts.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU tests/gpu/test_quiet_serving.py serves"),
]

STEPS = int(os.environ.get("KVPREFETCH_STEPS", "150"))
CAPACITY = 64
# Steps whose kernels run in the interpreter, which takes long; in the others a launch does nothing on the CPU.
INTERPRETED = 5
# A step's own tensors and frames are gone after it. An object that each step leaves takes 56 bytes and a pointer.
KEPT_BYTES_A_STEP = 16


class Decoder(torch.nn.Module):
    """Writes a key and a value at a position, and attends to all up to it."""

    def __init__(self, batch: int = 2, heads: int = 2, dim: int = 16) -> None:
        super().__init__()
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(batch, heads, CAPACITY, dim))
        self.register_buffer("positions", torch.arange(CAPACITY))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        self.keys.index_copy_(2, position, x)
        self.values.index_copy_(2, position, x + 1)
        mask = (self.positions <= position)[None, None, None]
        return functional.scaled_dot_product_attention(x, self.keys, self.values, attn_mask=mask)


Step = Callable[[int], Tensor]


def decoder_step() -> Step:
    model = Decoder()
    compiled = torch.compile(model, backend="kvprefetch")
    inputs = torch.randn(2, 2, 1, 16)
    positions = [torch.tensor([at]) for at in range(CAPACITY)]
    return lambda step: compiled(inputs, positions[step % CAPACITY])


def quantised_step() -> Step:
    cache = torch.randn(2, 2, CAPACITY, 16)
    stored, scale = quantise(cache, torch.int8, "head")
    q = torch.randn(2, 4, 1, 16, dtype=torch.float16)
    lengths = torch.ones(2, dtype=torch.int32)

    def run(step: int) -> Tensor:
        lengths.fill_(1 + step % CAPACITY)
        return quantised_decode_attention(q, stored, stored, scale, scale, lengths=lengths)

    return run


def paged_step() -> Step:
    pages = torch.randn(8, 2, 16, 16)
    table = torch.arange(8, dtype=torch.int32).view(2, 4)
    q, lengths = torch.randn(2, 4, 1, 16), torch.ones(2, dtype=torch.int32)

    def run(step: int) -> Tensor:
        lengths.fill_(1 + step % CAPACITY)
        return paged_decode_attention(q, pages, pages, table, lengths)

    return run


# PyTorch 2.11 defines a class at every call of prims.convert_element_type, which graphs run here uncompiled.
OF_TORCH_2_11 = (
    ("compile (b'int',)", "compile (b'lambda _cls, size, stride: _tuple_new(_cls, (size, stride))',)")
    if torch.__version__ < "2.12"
    else ()
)
SERVED = {"a compiled model": decoder_step, "a quantised cache": quantised_step, "a paged cache": paged_step}


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    with graphs_run_uncompiled(), torch.no_grad():
        yield
    torch._dynamo.reset()


def _launch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelCall, "launch", lambda call: None)


@pytest.mark.parametrize("served", SERVED)
def test_after_warm_up_nothing_but_steps(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with collect_reports() as warm:
        step = SERVED[served]()
        for number in range(3):
            step(number)
    again = list[str]()
    for module, name in (
        (rewrite, "select"),
        (rewrite, "recognise"),
        (rewrite, "precompile"),
        (precompile, "precompile"),
    ):
        monkeypatch.setattr(module, name, lambda *_, name=name: again.append(name))
    with audited() as events, logged() as records, collect_reports() as report:
        for number in range(INTERPRETED):
            step(number)
        _launch_nothing(monkeypatch)
        for number in range(STEPS):
            step(number)
    assert [event for event in events if event not in OF_TORCH_2_11] == []
    assert records == []
    assert again == []
    assert report.graphs == 0
    assert all(site.lowered for site in warm.sites)
    assert ops._failed_configs == {}


@pytest.mark.parametrize("served", SERVED)
def test_steps_keep_no_memory(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = SERVED[served]()
    step(0)
    _launch_nothing(monkeypatch)

    def kept() -> int:
        gc.collect()
        # What was allocated on our behalf: torch's own tables go on filling for thousands of steps.
        ours = tracemalloc.Filter(True, "*/prefetch_compiler/*", all_frames=True)
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces)

    tracemalloc.start(12)
    try:
        sizes = [kept()]
        # What is kept once is no leak; that grows in every stretch.
        for _ in range(3):
            for number in range(STEPS // 3):
                step(number)
            sizes.append(kept())
        grown = min(after - before for before, after in pairwise(sizes))
        assert grown <= KEPT_BYTES_A_STEP * (STEPS // 3), f"{sizes} bytes after every {STEPS // 3} steps"
    finally:
        tracemalloc.stop()


def test_the_audit_hears_what_it_listens_for(tmp_path: Path) -> None:
    with audited() as events, logged() as records:
        (tmp_path / "file").write_text("something")
        subprocess.run([sys.executable, "-c", ""], check=True)
        compile("1 + 1", "nowhere", "eval")
        rewrite.log.debug("a line")
    for prefix in ("open", "subprocess.Popen", "compile"):
        assert any(event.startswith(prefix) for event in events), prefix
    assert records == ["prefetch_compiler: a line"]
