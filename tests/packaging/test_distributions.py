"""The wheel, installed in a fresh virtual environment, serves the backend by name; the sdist builds the same wheel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .distributions import Built, build_and_unpack_sdist, build_wheel, copy_sources, create_environment, install, run

# Nothing of ours is imported before the model has run; strict raises if the site is not lowered.
COMPILE_BY_NAME = """
import importlib.resources, json, sys
import torch

class Attention(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

device = "cuda" if torch.cuda.is_available() else "cpu"
q = torch.randn(1, 4, 1, 64, device=device)
k, v = torch.randn(2, 1, 4, 48, 64, device=device).unbind(0)
ours_before = [name for name in sys.modules if name.startswith("prefetch_compiler")]
compiled = torch.compile(Attention(), backend="kvprefetch", options={"kvprefetch.strict": True})
with torch.no_grad():
    error = (compiled(q, k, v) - Attention()(q, k, v)).abs().max().item()

import prefetch_compiler, prefetch_compiler.templates.manifest
print(json.dumps({
    "ours_before": ours_before,
    "error": error,
    "package": prefetch_compiler.__file__,
    "templates": prefetch_compiler.templates.manifest.__file__,
    "tuning_db": str(importlib.resources.files("prefetch_compiler.tuning_db")),
}))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("sources") / "kvprefetch")


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_wheel(project, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel: Built) -> None:
    assert {name.split("/")[0] for name in wheel.files} == {"prefetch_compiler", "kvprefetch-0.1.0.dist-info"}
    for name in ("py.typed", "backend.py", "templates/manifest.py", "tuning_db/__init__.py"):
        assert f"prefetch_compiler/{name}" in wheel.files
    assert b"Apache License" in wheel.files["kvprefetch-0.1.0.dist-info/licenses/LICENSE"]


def test_the_wheel_declares_the_backend_and_the_command(wheel: Built) -> None:
    entry_points = wheel.files["kvprefetch-0.1.0.dist-info/entry_points.txt"].decode()
    assert "[torch_dynamo_backends]\nkvprefetch = prefetch_compiler.backend:kvprefetch" in entry_points
    assert "[console_scripts]\nkvprefetch = prefetch_compiler.cli:main" in entry_points


def test_an_installed_wheel_serves_the_backend_by_name(wheel: Built, tmp_path: Path) -> None:
    python = create_environment(tmp_path / "environment")
    install(python, wheel.wheel)
    empty = tmp_path / "empty"
    empty.mkdir()
    found = json.loads(run(python, "-I", "-c", COMPILE_BY_NAME, folder=empty).splitlines()[-1])
    assert found["ours_before"] == []
    assert found["error"] < 1e-5
    for part in ("package", "templates", "tuning_db"):
        assert Path(found[part]).is_relative_to(tmp_path / "environment"), found
    assert Path(found["templates"]).parent == Path(found["package"]).parent / "templates"


def test_the_installed_command_tells_its_version(wheel: Built, tmp_path: Path) -> None:
    python = create_environment(tmp_path / "environment")
    install(python, wheel.wheel)
    assert run(python.parent / "kvprefetch", "--version", folder=tmp_path).strip() == "kvprefetch 0.1.0"


def test_the_sdist_builds_the_same_wheel(project: Path, wheel: Built, tmp_path: Path) -> None:
    unpacked, _ = build_and_unpack_sdist(project, tmp_path / "sdist")
    assert build_wheel(unpacked, tmp_path / "wheel").files == wheel.files


def test_the_builds_give_no_warning(project: Path, wheel: Built, tmp_path: Path) -> None:
    _, sdist_output = build_and_unpack_sdist(project, tmp_path / "sdist")
    for output in (wheel.output, sdist_output):
        lines = [line for line in output.splitlines() if "warn" in line.lower() or "deprecat" in line.lower()]
        assert not lines, lines


@pytest.mark.parametrize("inside_the_repository", [False, True])
def test_an_editable_install_finds_the_mapped_folders(tmp_path: Path, inside_the_repository: bool) -> None:
    project = copy_sources(tmp_path / "kvprefetch")
    python = create_environment(tmp_path / "environment")
    install(python, "--no-build-isolation", "--editable", project)
    where = project if inside_the_repository else tmp_path
    script = "from prefetch_compiler import templates, tuning_db; print(templates.__file__, tuning_db.__file__)"
    templates, tuning_db = run(python, "-c", script, folder=where).split()
    assert Path(templates) == project / "templates" / "__init__.py"
    assert Path(tuning_db) == project / "tuning_db" / "__init__.py"
