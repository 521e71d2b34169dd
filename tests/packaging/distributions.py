"""Builds the distributions of a copy of this repository, and installs them where nothing else of ours is."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "prefetch_compiler", "templates", "tuning_db")


@dataclass(frozen=True)
class Built:
    """What one build left.

    Attributes:
        files: path inside the wheel -> content, without the RECORD (which lists the others).
        output: everything that the build printed.
    """

    wheel: Path
    files: dict[str, bytes]
    output: str


def copy_sources(target: Path) -> Path:
    """A copy to build from: setuptools writes into the folder that it builds."""
    target.mkdir(parents=True)
    for name in _SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target / name)
    return target


def build_wheel(project: Path, output_folder: Path) -> Built:
    """Build a wheel from a source folder, with the setuptools of this environment."""
    output = run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", output_folder, project)
    (wheel,) = output_folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}
    return Built(wheel, files, output)


def build_and_unpack_sdist(project: Path, output_folder: Path) -> tuple[Path, str]:
    """Build a source distribution and unpack it; the folder, and what the build printed."""
    output = run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", output_folder, project)
    (sdist,) = output_folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(output_folder, filter="data")
    return output_folder / sdist.name.removesuffix(".tar.gz"), output


def create_environment(folder: Path) -> Path:
    """A new virtual environment; its Python.

    torch and the rest are borrowed from the running environment through a .pth file. Only sys.path is extended by
    it: .pth files over there, such as an editable install's, are not read.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(purelib, "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


def install(python: Path, *arguments: str | Path) -> None:
    """pip install, touching no index and no dependency."""
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", *arguments)


def run(*command: str | Path, folder: Path | None = None, **environment: str) -> str:
    """Run a command without this process's Python variables; its output.

    Raises:
        AssertionError: it failed; the message holds what it printed.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, f"{command} failed:\n{finished.stdout}"
    return finished.stdout
