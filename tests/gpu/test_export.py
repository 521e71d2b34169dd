"""Packages of a decode step on a GPU: with our operator, and with the kernels compiled in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.profiler import ProfilerActivity, profile
from torch.utils.cpp_extension import CUDA_HOME

import prefetch_compiler
from prefetch_compiler.report import collect_reports

from ..export.decoder import decoder, empty_cache, step_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA_HOME is None, reason="AOTInductor compiles against the CUDA toolkit, and there is none"),
]
DTYPE = torch.bfloat16
STEPS = 4
# Of nothing of ours.
PLAIN_PACKAGE = """
import sys, torch
program = torch.export.export(torch.nn.Linear(8, 8, device="cuda"), (torch.ones(2, 8, device="cuda"),))
path = torch._inductor.aoti_compile_and_package(program, package_path=sys.argv[1])
torch._inductor.aoti_load_package(path)(torch.ones(2, 8, device="cuda"))
"""


@pytest.fixture(scope="module", autouse=True)
def _packages_load(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Loading any package ends some processes with a segmentation fault, PyTorch's own included."""
    path = tmp_path_factory.mktemp("plain") / "plain.pt2"
    command = [sys.executable, "-c", PLAIN_PACKAGE, str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or [""])[-1]
        pytest.skip(f"AOTInductor's package of a linear layer does not run here: exit {finished.returncode}, {last}")


def package(path: Path, embed: bool) -> str:
    """Of the step, with a dynamic batch where it may have one; every site is lowered."""
    x, position = step_inputs(0, device="cuda", dtype=DTYPE)
    model = decoder("cuda", DTYPE).requires_grad_(False)
    batch = Dim("batch", max=8)
    dynamic: Any = None if embed else ({0: batch}, {1: batch}, None)
    program = torch.export.export(model, (x, empty_cache(device="cuda", dtype=DTYPE), position), dynamic_shapes=dynamic)
    with collect_reports() as report:
        made = prefetch_compiler.aot_compile_and_package(
            program, package_path=path, options={"kvprefetch.strict": True}, embed_kernels=embed
        )
    assert [site.lowered for site in report.sites] == [True, True]
    return made


def steps(run: Any, dtype: torch.dtype, batch: int) -> tuple[list[Tensor], Tensor]:
    """Outputs of the steps, and the cache after them, in float64."""
    cache = empty_cache(batch, "cuda", dtype)
    with torch.no_grad():
        outputs = [
            run(x.to(dtype), cache, position).double()
            for x, position in (step_inputs(step, batch, "cuda", DTYPE) for step in range(STEPS))
        ]
    return outputs, cache.double()


def assert_no_worse_than_eager(run: Any, batch: int) -> None:
    """Against the same weights in float64: twice what eager errs, since either rounds at its own places."""
    exact, exact_cache = steps(decoder("cuda", DTYPE).double(), torch.float64, batch)
    eager, eagers_cache = steps(decoder("cuda", DTYPE), DTYPE, batch)
    ours, our_cache = steps(run, DTYPE, batch)
    for mine, theirs, true in zip((*ours, our_cache), (*eager, eagers_cache), (*exact, exact_cache), strict=True):
        assert torch.isfinite(mine).all()
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max()


def kernels_run(run: Any) -> set[str]:
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        steps(run, DTYPE, 2)
        torch.cuda.synchronize()
    return {event.key for event in profiled.key_averages()}


@pytest.mark.parametrize("embed", [False, True], ids=["operator", "embedded"])
def test_a_package_runs_the_kernels(tmp_path: Path, embed: bool) -> None:
    run = torch._inductor.aoti_load_package(package(tmp_path / "decode.pt2", embed))
    for batch in (2,) if embed else (2, 3):
        # Its bias is counted down: each run of the steps needs the package as it was.
        assert_no_worse_than_eager(torch._inductor.aoti_load_package(str(tmp_path / "decode.pt2")), batch)
    assert any("split_kv_decode" in name for name in kernels_run(run))


def test_embedded_kernels_need_nothing_of_ours(tmp_path: Path) -> None:
    """A process that has not imported us, as one without Python has not."""
    path = package(tmp_path / "decode.pt2", embed=True)
    x, position = step_inputs(0, device="cuda", dtype=DTYPE)
    torch.save((x, empty_cache(device="cuda", dtype=DTYPE), position), tmp_path / "inputs.pt")
    script = (
        "import sys, torch\n"
        "run = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "torch.save(run(*torch.load(sys.argv[2])), sys.argv[3])\n"
        "assert 'prefetch_compiler' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, path, str(tmp_path / "inputs.pt"), str(tmp_path / "output.pt")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    run = torch._inductor.aoti_load_package(path)
    expected = run(x, empty_cache(device="cuda", dtype=DTYPE), position)
    assert torch.equal(torch.load(tmp_path / "output.pt"), expected)
