"""Every kernel that a compiled graph launches was compiled and loaded while the graph was compiled: the first step of
serving finds them all, of every shape, and so does every later one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.lower import launch, ops, rewrite
from prefetch_compiler.lower import precompile as precompile_module
from prefetch_compiler.lower.precompile import _type_name
from prefetch_compiler.lower.specialise import KernelCall

from .golden.catalogue import GOLDEN_GRAPHS
from .golden.graph import Golden
from .golden.run import run_compiled
from .uncompiled import graphs_run_uncompiled

# Triton's interpreter warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# All golden graphs take minutes; these have what kernels are specialised to besides the sizes of a spec.
SAMPLE = ("llama_static", "uint4_halves", "paged_int8", "latent_absorbed")
EVERY_FORM = os.environ.get("KVPREFETCH_EVERY_FORM") == "1"
GOLDEN = [golden for golden in GOLDEN_GRAPHS if EVERY_FORM or golden.name in SAMPLE]

Binary = tuple[Any, ...]


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def binary_of(call: KernelCall) -> Binary:
    """What tells one of a kernel's binaries from the others: constants, launch options and the types of arguments.
    Integers are of one type to a kernel that is compiled for none in particular."""
    types = tuple(
        (name, "integer" if isinstance(value, int) else _type_name(value)) for name, value in call.arguments.items()
    )
    constants = tuple((name, repr(value)) for name, value in sorted(call.constants.items()))
    return call.kernel.__name__, types, constants, tuple(sorted(call.options.items()))


@pytest.fixture
def binaries(monkeypatch: pytest.MonkeyPatch) -> tuple[set[Binary], set[Binary]]:
    """Those compiled beforehand, and those launched without."""
    loaded, missing = set[Binary](), set[Binary]()
    kernel_calls, calls_of = precompile_module.kernel_calls, launch.calls_of

    def compiled(*given: Any) -> list[KernelCall]:
        calls = kernel_calls(*given)
        loaded.update(map(binary_of, calls))
        return calls

    def launched(*given: Any, **named: Any) -> list[KernelCall]:
        calls = calls_of(*given, **named)
        missing.update({binary_of(call) for call in calls} - loaded)
        return calls

    monkeypatch.setattr(precompile_module, "kernel_calls", compiled)
    monkeypatch.setattr(launch, "calls_of", launched)
    return loaded, missing


@pytest.mark.parametrize("golden", GOLDEN, ids=str)
def test_what_is_launched_was_compiled_before(golden: Golden, binaries: tuple[set[Binary], set[Binary]]) -> None:
    with graphs_run_uncompiled():
        _, report = run_compiled(golden)
    loaded, missing = binaries
    assert report.lowered
    assert loaded
    assert missing == set()


def test_every_sample_is_a_golden_graph() -> None:
    assert set(SAMPLE) <= {golden.name for golden in GOLDEN_GRAPHS}


def three_shapes(q: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
    return tuple(functional.scaled_dot_product_attention(q, one, one) for one in caches)


def test_no_launch_comes_before_the_last_shape_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where compiling takes longer than all else."""
    events: list[tuple[str, int]] = []
    launch_decode = ops.launch_decode

    def slowly(spec: Any, *_: Any) -> None:
        time.sleep(0.2)
        events.append(("loaded", spec.kv_len))

    def launched(q: Tensor, k: Tensor, *given: Any, **named: Any) -> Tensor:
        events.append(("launched", k.shape[2]))
        return launch_decode(q, k, *given, **named)

    monkeypatch.setattr(rewrite, "precompile", slowly)
    monkeypatch.setattr(ops, "launch_decode", launched)
    caches = [torch.randn(1, 2, length, 16, device=DEVICE) for length in (32, 48, 80)]
    torch._dynamo.reset()
    with graphs_run_uncompiled(), torch.no_grad():
        step = torch.compile(three_shapes, backend="kvprefetch")
        for _ in range(2):
            step(caches[0][:, :, :1], *caches)
    assert [what for what, _ in events] == ["loaded"] * 3 + ["launched"] * 6
    assert sorted(length for what, length in events if what == "loaded") == [32, 48, 80]
