"""What a figure depends on beside the code: GPU, driver, library versions, kernels, command line."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata

import torch

from ..database.template_hash import whole_hashes


def describe_environment(device: torch.device) -> dict[str, str | None]:
    """Plain data for JSON; None where something cannot be known."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "driver": driver_version() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "kvprefetch": _version("kvprefetch"),
        "templates_sha256": " ".join(whole_hashes().values()),
        "command": " ".join(sys.argv),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def driver_version() -> str | None:
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return None
    query = [nvidia_smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    reply = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return reply.stdout.splitlines()[0].strip() if reply.returncode == 0 and reply.stdout else None
