"""Serving on a GPU is quiet: after warm-up, ten thousand decode steps compile and load no kernel, open no file, wait
for no device, take no more memory and say nothing. Beside it tests/serving, which needs no GPU.
KVPREFETCH_STEPS is the number of steps."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler import paged_decode_attention, quantise, quantised_decode_attention
from prefetch_compiler.lower import ops
from prefetch_compiler.lower.specialise import KernelCall
from prefetch_compiler.report import collect_reports

from ..serving.quiet import audited, logged

pytestmark = pytest.mark.gpu

STEPS = int(os.environ.get("KVPREFETCH_STEPS", "10000"))
WARM_UP = 8
BATCH, QUERY_HEADS, KV_HEADS, DIM, CAPACITY = 4, 8, 2, 64, 1024
OURS = ("split_kv_decode", "quantised_decode", "latent_decode", "latent_producer", "merge_splits")
Step = Callable[[], Tensor]


class Decoder(torch.nn.Module):
    """Two layers over static caches; the position moves on by itself, on the device."""

    def __init__(self, device: torch.device | str = "cuda", batch: int = BATCH) -> None:
        super().__init__()
        shape = (2, batch, KV_HEADS, CAPACITY, DIM)
        self.register_buffer("keys", torch.zeros(shape, device=device, dtype=torch.bfloat16))
        self.register_buffer("values", torch.zeros(shape, device=device, dtype=torch.bfloat16))
        self.register_buffer("positions", torch.arange(CAPACITY, device=device))

    def forward(self, q: Tensor, position: Tensor) -> Tensor:
        mask = (self.positions <= position)[None, None, None]
        for keys, values in zip(self.keys, self.values, strict=True):
            keys.index_copy_(2, position, q[:, :KV_HEADS] + 1)
            values.index_copy_(2, position, q[:, KV_HEADS : 2 * KV_HEADS])
            q = functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        return q


def queries(device: torch.device | str = "cuda", batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, QUERY_HEADS, 1, DIM, generator=generator).to(device, torch.bfloat16)


def compiled_model(**options: Any) -> Step:
    decoder = torch.compile(Decoder(), backend="kvprefetch", options={"kvprefetch.strict": True, **options})
    q, position = queries(), torch.zeros(1, dtype=torch.int64, device="cuda")

    def step() -> Tensor:
        if "kvprefetch.mode" in options:
            torch.compiler.cudagraph_mark_step_begin()
        out: Tensor = decoder(q, position)
        position.add_(1).remainder_(CAPACITY)
        return out

    return step


def compiled_with_cuda_graphs() -> Step:
    return compiled_model(**{"kvprefetch.mode": "reduce-overhead"})


def captured_by_the_caller() -> Step:
    step = compiled_model()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def quantised_by_name() -> Step:
    cache = torch.randn(BATCH, KV_HEADS, CAPACITY, DIM, device="cuda")
    stored, scale = quantise(cache, torch.int8, "head")
    q, lengths = queries(), torch.ones(BATCH, dtype=torch.int32, device="cuda")

    def step() -> Tensor:
        lengths.add_(1).remainder_(CAPACITY)
        out = quantised_decode_attention(q, stored, stored, scale, scale, lengths=lengths)
        assert isinstance(out, Tensor)
        return out

    return step


def paged_by_name() -> Step:
    pages = torch.randn(CAPACITY // 16 * BATCH, KV_HEADS, 16, DIM, device="cuda", dtype=torch.bfloat16)
    table = torch.arange(len(pages), dtype=torch.int32, device="cuda").view(BATCH, -1)
    q, lengths = queries(), torch.ones(BATCH, dtype=torch.int32, device="cuda")

    def step() -> Tensor:
        lengths.add_(1).remainder_(CAPACITY)
        out = paged_decode_attention(q, pages, pages, table, lengths)
        assert isinstance(out, Tensor)
        return out

    return step


SERVED: dict[str, Callable[[], Step]] = {
    "compiled": compiled_model,
    "compiled, CUDA graphs": compiled_with_cuda_graphs,
    "captured by the caller": captured_by_the_caller,
    "quantised, by name": quantised_by_name,
    "paged, by name": paged_by_name,
}


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch.cuda.set_sync_debug_mode("default")
    torch._dynamo.reset()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of kernels, anybody's, in the order in which they are loaded onto the GPU."""
    from triton.compiler import CompiledKernel

    names: list[str] = []
    load = CompiledKernel._init_handles

    def noted(self: Any) -> Any:
        if self.module is None:
            names.append(str(self.metadata.name))
        return load(self)

    monkeypatch.setattr(CompiledKernel, "_init_handles", noted)
    return names


def memory() -> dict[str, int]:
    """What the allocator holds, and how often it asked the driver."""
    counted = torch.cuda.memory_stats()
    names = ("allocated_bytes.all.current", "reserved_bytes.all.current", "segment.all.allocated", "num_alloc_retries")
    return {name: counted[name] for name in names}


@pytest.mark.parametrize("served", SERVED)
def test_ten_thousand_quiet_steps(served: str, loaded: list[str]) -> None:
    step = SERVED[served]()
    for _ in range(WARM_UP):
        out = step()
    torch.cuda.synchronize()
    del loaded[:]
    before = memory()
    with audited() as events, logged() as records, collect_reports() as report:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(STEPS):
            out = step()
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert events == []
    assert records == []
    assert loaded == []
    assert report.graphs == 0
    assert memory() == before
    assert ops._failed_configs == {}
    assert out.isfinite().all()


def test_every_shape_is_loaded_before_the_first_launch(loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[int] = []
    launch = KernelCall.launch

    def noted(self: KernelCall) -> None:
        launches.append(sum(name.startswith(OURS) for name in loaded))
        launch(self)

    monkeypatch.setattr(KernelCall, "launch", noted)
    # Sizes of no other test: kernels of theirs are loaded already.
    dims = (24, 40, 56)
    caches = [torch.randn(2, 2, 300 + dim, dim, device="cuda", dtype=torch.bfloat16) for dim in dims]

    def attend(*given: Tensor) -> list[Tensor]:
        return [functional.scaled_dot_product_attention(one[:, :, :1], one, one) for one in given]

    with collect_reports() as report:
        torch.compile(attend, backend="kvprefetch", options={"kvprefetch.strict": True})(*caches)
    torch.cuda.synchronize()
    assert len(report.lowered) == len(dims)
    assert launches
    assert launches[0] >= len(dims)
    assert launches == [launches[0]] * len(launches), "a launch loaded a kernel"
    assert sum(name.startswith(OURS) for name in loaded) == launches[0]


class Pair:
    """A compiled decoder on ``device`` beside an eager one."""

    def __init__(self, device: str) -> None:
        self.eager, self.model, self.device = Decoder(device), Decoder(device), device
        self.compiled = torch.compile(self.model, backend="kvprefetch", options={"kvprefetch.strict": True})

    def follow(self, steps: int, begin: int = 0) -> None:
        q = queries(self.device)
        with torch.no_grad():
            for at in range(begin, steps):
                position = torch.tensor([at], device=self.device)
                torch.testing.assert_close(self.compiled(q, position), self.eager(q, position), rtol=2e-2, atol=2e-2)
        assert torch.equal(self.model.keys[0], self.eager.keys[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_models_on_several_devices() -> None:
    """The current device is none of theirs half of the time."""
    for current in range(2):
        with torch.cuda.device(current):
            for device in ("cuda:0", "cuda:1"):
                Pair(device).follow(5)


def test_threads_on_streams_of_their_own() -> None:
    raised: list[BaseException] = []
    pairs = [Pair("cuda") for _ in range(4)]
    compiled_before = torch.__version__ < "2.12"
    if compiled_before:
        # Dynamo of PyTorch 2.11 takes a thread that calls while another compiles for one that is being traced.
        for pair in pairs:
            pair.follow(1)

    def work(pair: Pair) -> None:
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                pair.follow(20, begin=int(compiled_before))
                torch.cuda.current_stream().synchronize()
        except BaseException as error:
            raised.append(error)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(pair,), daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert raised == []
    assert not any(thread.is_alive() for thread in threads)


def test_the_checks_hear_what_they_listen_for(loaded: list[str]) -> None:
    """A wait for the device is an error, a kernel that is loaded is noted, and memory that is kept shows."""
    q = queries()
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchroniz"):
        q.sum().item()
    torch.cuda.set_sync_debug_mode("default")
    cache = torch.randn(1, 2, 77, 48, device="cuda", dtype=torch.float16)
    torch.compile(lambda one: functional.scaled_dot_product_attention(one[:, :, :1], one, one), backend="kvprefetch")(
        cache
    )
    assert any(name.startswith(OURS) for name in loaded)
    before = memory()
    kept = torch.zeros(1 << 20, device="cuda")
    assert memory() != before
    del kept
