"""A decode step that is exported and packaged by AOTInductor runs our kernels, and computes what eager does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

import prefetch_compiler
from prefetch_compiler.device import interpreting
from prefetch_compiler.lower import ops
from prefetch_compiler.report import Report, collect_reports

from .decoder import decoder, empty_cache, step_inputs

pytestmark = pytest.mark.skipif(
    not interpreting(), reason="on the CPU only the interpreter runs kernels; tests/gpu has the like for a GPU"
)
# Without the optimiser: g++ takes half as long.
QUICK = {"aot_inductor.compile_wrapper_opt_level": "O0"}


def exported() -> ExportedProgram:
    batch = Dim("batch", max=8)
    x, position = step_inputs(0)
    model = decoder().requires_grad_(False)
    return torch.export.export(
        model, (x, empty_cache(), position), dynamic_shapes=({0: batch}, {1: batch}, None), strict=False
    )


@dataclass(frozen=True)
class Package:
    path: str
    report: Report
    program: ExportedProgram
    code_before: str


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    path = tmp_path_factory.mktemp("package") / "decode.pt2"
    program = exported()
    before = program.graph_module.print_readable(print_output=False)
    with collect_reports() as report:
        made = prefetch_compiler.aot_compile_and_package(
            program, package_path=path, options={"kvprefetch.strict": True, **QUICK}
        )
    assert made == str(path)
    return Package(made, report, program, before)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch of every launch of our kernels."""
    batches: list[int] = []
    launch: Callable[..., Tensor] = ops.launch_decode

    def counted(q: Tensor, *arguments: Any, **options: Any) -> Tensor:
        batches.append(len(q))
        return launch(q, *arguments, **options)

    monkeypatch.setattr(ops, "launch_decode", counted)
    return batches


def test_every_site_is_lowered(package: Package) -> None:
    assert [(site.layer, site.form) for site in package.report.lowered] == [
        ("cached", "sdpa"),
        ("over_memory", "softmax"),
    ]
    cached, over_memory = (site.spec for site in package.report.lowered)
    assert cached is not None and over_memory is not None
    assert (cached.kv_heads, cached.group, "batch" in cached.symbolic) == (2, 2, True)
    assert (over_memory.kv_heads, over_memory.key_layout.batch_stride) == (4, 0)


def test_the_program_is_left_as_it_is(package: Package) -> None:
    assert package.program.graph_module.print_readable(print_output=False) == package.code_before


def test_steps_are_eagers_and_run_the_kernels(package: Package, launches: list[int]) -> None:
    """With a batch that the program was not exported with too; caches and a buffer are written to at each step."""
    run = torch._inductor.aoti_load_package(package.path)
    eager = decoder()
    step = 0
    for batch in (2, 3):
        cache, eagers_cache = empty_cache(batch), empty_cache(batch)
        for _ in range(2):
            x, position = step_inputs(step, batch)
            with torch.no_grad():
                torch.testing.assert_close(run(x, cache, position), eager(x, eagers_cache, position))
            torch.testing.assert_close(cache, eagers_cache)
            step += 1
    assert launches == [2] * 4 + [3] * 4


def test_a_process_that_loads_it_has_to_import_us(package: Package, tmp_path: Path) -> None:
    x, position = step_inputs(0)
    torch.save((x, empty_cache(), position), tmp_path / "inputs.pt")
    script = (
        "import sys, torch\n"
        "try:\n"
        "    torch._inductor.aoti_load_package(sys.argv[1])\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
        "import prefetch_compiler\n"
        "run = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "torch.save(run(*torch.load(sys.argv[2])), sys.argv[3])\n"
    )
    command = [sys.executable, "-c", script, package.path, str(tmp_path / "inputs.pt"), str(tmp_path / "output.pt")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "kvprefetch::decode_attention" in finished.stdout
    with torch.no_grad():
        expected = decoder()(x, empty_cache(), position)
    torch.testing.assert_close(torch.load(tmp_path / "output.pt"), expected)
