"""What a figure depends on beside the code: GPU, driver, library versions, kernels, command line."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch


def describe_environment(device: torch.device) -> dict[str, str | None]:
    """Plain data for JSON; None where something cannot be known."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "driver": _driver_version() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "kvprefetch": _version("kvprefetch"),
        "templates_sha256": _templates_hash(),
        "command": " ".join(sys.argv),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return None
    query = [nvidia_smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    reply = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return reply.stdout.splitlines()[0].strip() if reply.returncode == 0 and reply.stdout else None


def _templates_hash() -> str | None:
    """SHA-256 over the kernel sources, so that a figure names the kernels it was measured with."""
    spec = importlib.util.find_spec("prefetch_compiler.templates")
    if spec is None or not spec.submodule_search_locations:
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(next(iter(spec.submodule_search_locations))).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
