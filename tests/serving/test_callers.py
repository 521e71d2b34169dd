"""Callers of every kind: threads that compile at once, several models, compiling again after a reset, and workers that
are forked or spawned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler import DecodeOptions, decode_attention
from prefetch_compiler.lower import call_op, ops
from prefetch_compiler.report import collect_reports

from ..contract.uncompiled import graphs_run_uncompiled

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
THREADS, ROUNDS = 4, 3
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch._dynamo.reset()
    with graphs_run_uncompiled():
        yield
    torch._dynamo.reset()


class Layer(torch.nn.Module):
    """Attention of its own head dim, so that models differ in their kernels."""

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.register_buffer("k", torch.randn(1, 2, length, dim, generator=torch.Generator().manual_seed(dim)))
        self.to(DEVICE)

    def forward(self, q: Tensor) -> Tensor:
        mask = (torch.arange(self.k.shape[2], device=q.device) < self.k.shape[2] - 3)[None, None, None]
        return functional.scaled_dot_product_attention(q, self.k, self.k, attn_mask=mask)


def query(model: Layer, seed: int) -> Tensor:
    return torch.randn(1, 2, 1, model.k.shape[3], generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def at_once(work: Callable[[int], None]) -> list[BaseException]:
    """``work`` of every thread's number, begun together; what was raised."""
    gate, raised = threading.Barrier(THREADS), list[BaseException]()

    def run(number: int) -> None:
        try:
            with torch.no_grad():
                gate.wait()
                work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "threads wait for one another"
    return raised


STRICT = {"kvprefetch.strict": True}


def _compile_in_turn(models: list[Layer], steps: list[Callable[[Tensor], Tensor]]) -> None:
    """Dynamo of PyTorch 2.11 itself takes a thread that calls while another compiles for one that is being traced."""
    if torch.__version__ < "2.12":
        with torch.no_grad():
            for model, step in zip(models, steps, strict=True):
                step(query(model, 0))


def test_threads_compile_and_call_models_of_their_own() -> None:
    models = [Layer(dim, 40) for dim in (8, 16, 24, 32)]
    steps = [torch.compile(model, backend="kvprefetch", options=STRICT) for model in models]
    _compile_in_turn(models, steps)

    def work(number: int) -> None:
        model, step = models[number], steps[number]
        for seed in range(ROUNDS):
            torch.testing.assert_close(step(query(model, seed)), model(query(model, seed)))

    assert at_once(work) == []
    assert ops._failed_configs == {}


def test_threads_call_one_model_with_inputs_of_their_own() -> None:
    model = Layer(16, 40)
    step = torch.compile(model, backend="kvprefetch", options=STRICT)
    _compile_in_turn([model], [step])

    def work(number: int) -> None:
        for seed in range(ROUNDS):
            q = query(model, 100 * number + seed)
            torch.testing.assert_close(step(q), model(q))

    assert at_once(work) == []


def test_threads_call_by_name() -> None:
    models = [Layer(dim, 40) for dim in (8, 16, 24, 32)]
    call_op.forget_selections()

    def work(number: int) -> None:
        for seed in range(ROUNDS):
            model = models[(number + seed) % len(models)]
            q = query(model, seed)
            out = decode_attention(q, model.k, model.k, options=DecodeOptions(strict=True))
            torch.testing.assert_close(out, functional.scaled_dot_product_attention(q, model.k, model.k))

    assert at_once(work) == []


def test_models_do_not_disturb_one_another() -> None:
    models = [Layer(dim, length) for dim, length in ((16, 40), (16, 72), (32, 40))]
    with collect_reports() as report, torch.no_grad():
        steps = [torch.compile(model, backend="kvprefetch", options=STRICT) for model in models]
        for seed in range(ROUNDS):
            for model, step in zip(models, steps, strict=True):
                torch.testing.assert_close(step(query(model, seed)), model(query(model, seed)))
    assert [site.spec is not None and site.spec.kv_len for site in report.lowered] == [40, 72, 40]


def test_after_a_reset_a_model_compiles_again() -> None:
    model = Layer(16, 40)
    with torch.no_grad():
        for seed in range(ROUNDS):
            torch._dynamo.reset()
            with collect_reports() as report:
                step = torch.compile(model, backend="kvprefetch", options=STRICT)
                torch.testing.assert_close(step(query(model, seed)), model(query(model, seed)))
            assert len(report.lowered) == 1


def test_workers_compile_what_their_parent_compiled() -> None:
    script = Path(__file__).with_name("callers_run.py")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    outcomes: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    assert [name for name, found in outcomes.items() if not isinstance(found, dict)] == [], outcomes
    for name, found in outcomes.items():
        assert found["error"] < 1e-4, name
        assert found["lowered"] == 1, name
        assert found["failed"] == [], name
    forks = {"fork", "fork-while-loading"} if DEVICE.type == "cpu" else set[str]()
    assert outcomes.keys() == {"before", "spawn", "after"} | forks
