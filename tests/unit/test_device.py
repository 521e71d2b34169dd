"""DeviceProfile: features follow the architecture, and a device without one is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prefetch_compiler import device
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES, DeviceProfile, profile

# Table "Technical Specifications per Compute Capability" of the CUDA C++ programming guide: the most shared memory
# one thread block may use, in KiB.
SHARED_MEMORY_PER_BLOCK_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


@pytest.mark.parametrize("arch", REFERENCE_DEVICES)
def test_a_reference_device_is_what_its_key_says(arch: int) -> None:
    reference = REFERENCE_DEVICES[arch]
    assert (reference.arch, reference.backend) == (arch, "cuda")
    assert reference.shared_memory_bytes == SHARED_MEMORY_PER_BLOCK_KIB[arch] * 1024


@pytest.mark.parametrize("feature", ["has_tma", "has_launch_overlap", "has_bulk_prefetch"])
def test_hopper_features_start_at_sm_90(feature: str) -> None:
    having = {arch for arch, reference in REFERENCE_DEVICES.items() if getattr(reference, feature)}
    assert having == {90, 100, 120}


def test_line_prefetch_is_on_every_nvidia_gpu() -> None:
    assert all(reference.has_line_prefetch for reference in REFERENCE_DEVICES.values())


@pytest.mark.parametrize("feature", ["has_tma", "has_launch_overlap", "has_line_prefetch", "has_bulk_prefetch"])
def test_other_backends_have_no_nvidia_feature(feature: str) -> None:
    amd = dataclasses.replace(REFERENCE_DEVICES[90], backend="hip", arch=0)
    assert not getattr(amd, feature)
    assert not getattr(INTERPRETER, feature)


def test_the_cpu_is_the_interpreter_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert profile(torch.device("cpu")) is INTERPRETER
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        profile(torch.device("cpu"))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not device.interpreting()


def test_a_device_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="meta"):
        profile(torch.device("meta"))


@pytest.mark.gpu
def test_the_profile_of_a_real_gpu() -> None:
    here: DeviceProfile = profile(torch.device("cuda"))
    assert here.name == torch.cuda.get_device_name()
    assert here is profile(torch.device("cuda", torch.cuda.current_device()))
    if here.backend == "cuda":
        major, minor = torch.cuda.get_device_capability()
        assert here.arch == 10 * major + minor
        assert here.shared_memory_bytes >= 1024 * SHARED_MEMORY_PER_BLOCK_KIB.get(here.arch, 48)
