"""DeviceProfile: what configuration selection may know about the device. Plain data, so tests can name any GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import torch


def interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter. Triton reads this when a kernel is decorated, so it must be
    set before the first import of a template."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@dataclass(frozen=True)
class DeviceProfile:
    """One GPU model (or the interpreter).

    Attributes:
        backend: ``cuda``, ``hip`` or ``interpreter``.
        arch: compute capability times ten (90 for sm_90); 0 off NVIDIA.
        sm_count: streaming multiprocessors (compute units on AMD).
        l2_bytes: L2 cache.
        shared_memory_bytes: the most one program may use (opt-in limit).
    """

    name: str
    backend: str
    arch: int
    sm_count: int
    l2_bytes: int
    shared_memory_bytes: int

    @property
    def has_tma(self) -> bool:
        return self.backend == "cuda" and self.arch >= 90

    @property
    def has_warpgroup_products(self) -> bool:
        """Matrix products issued by a warpgroup on shared-memory operands (wgmma and its successor)."""
        return self.backend == "cuda" and self.arch >= 90

    @property
    def has_launch_overlap(self) -> bool:
        """Programmatic dependent launch (CUDA programming guide, sm_90 and later)."""
        return self.backend == "cuda" and self.arch >= 90

    @property
    def has_line_prefetch(self) -> bool:
        return self.backend == "cuda"

    @property
    def has_bulk_prefetch(self) -> bool:
        return self.backend == "cuda" and self.arch >= 90


INTERPRETER = DeviceProfile("interpreter", "interpreter", 0, 2, 1 << 20, 1 << 20)

# Public figures of one common model per architecture: used to compile and check configurations with no GPU present.
REFERENCE_DEVICES = {
    80: DeviceProfile("NVIDIA A100-SXM4-80GB", "cuda", 80, 108, 40 << 20, 166_912),
    86: DeviceProfile("NVIDIA A10", "cuda", 86, 72, 6 << 20, 101_376),
    89: DeviceProfile("NVIDIA L40S", "cuda", 89, 142, 96 << 20, 101_376),
    90: DeviceProfile("NVIDIA H200", "cuda", 90, 132, 60 << 20, 232_448),
    100: DeviceProfile("NVIDIA B200", "cuda", 100, 148, 126 << 20, 232_448),
    120: DeviceProfile("NVIDIA GeForce RTX 5090", "cuda", 120, 170, 96 << 20, 101_376),
}


def profile(device: torch.device) -> DeviceProfile:
    """The profile of ``device``: a GPU, or the interpreter's for a CPU under TRITON_INTERPRET=1.

    Raises:
        ValueError: the device is neither.
    """
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        return _gpu_profile(index)
    if device.type == "cpu" and interpreting():
        return INTERPRETER
    raise ValueError(f"no profile for device {device}: expected a GPU, or the CPU with TRITON_INTERPRET=1")


def current_device() -> torch.device:
    """The GPU that torch uses at present, or the CPU where it sees none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def visible_profiles() -> list[DeviceProfile]:
    """Of every device that a graph may be lowered for, each GPU model once."""
    if torch.cuda.is_available():
        found = [profile(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
        return list(dict.fromkeys(found))
    return [INTERPRETER] if interpreting() else []


@cache
def _gpu_profile(index: int) -> DeviceProfile:
    properties = torch.cuda.get_device_properties(index)
    hip = torch.version.hip is not None
    return DeviceProfile(
        name=properties.name,
        backend="hip" if hip else "cuda",
        arch=0 if hip else properties.major * 10 + properties.minor,
        sm_count=properties.multi_processor_count,
        l2_bytes=int(getattr(properties, "L2_cache_size", 0)),
        shared_memory_bytes=int(getattr(properties, "shared_memory_per_block_optin", 65_536)),
    )
