"""Which GPU a name, an architecture or a description means, and what is taken where nobody names one."""

from __future__ import annotations

import pytest
import torch

from prefetch_compiler.database.document import Database
from prefetch_compiler.database.overlay import NO_DATABASES, Overlays
from prefetch_compiler.database.record import DeviceIdentity
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES, profile
from prefetch_compiler.explain_command.errors import AmbiguousGPUError, UnknownArchitectureError, UnknownGPUError
from prefetch_compiler.explain_command.gpu import choose_gpu, profile_of

L4 = DeviceIdentity("NVIDIA L4", "cuda", 89, 58)
H100 = DeviceIdentity("NVIDIA H100 80GB HBM3", "cuda", 90, 132)
H100_NVL = DeviceIdentity("NVIDIA H100 NVL", "cuda", 90, 114)
DATABASES = Overlays(((Database(L4),), (Database(H100_NVL), Database(H100))))
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, and goes first")


@pytest.mark.parametrize("text", ["NVIDIA L4", "nvidia l4", "L4", " l4 "])
def test_a_gpu_of_a_database_by_its_whole_name(text: str) -> None:
    gpu = choose_gpu(text, DATABASES)
    assert (gpu.name, gpu.arch, gpu.sm_count) == ("NVIDIA L4", 89, 58)
    assert gpu.shared_memory_bytes == REFERENCE_DEVICES[89].shared_memory_bytes


def test_a_part_of_a_name_is_enough_where_one_has_it() -> None:
    assert choose_gpu("nvl", DATABASES).sm_count == 114
    assert choose_gpu("5090", NO_DATABASES) == REFERENCE_DEVICES[120]
    with pytest.raises(AmbiguousGPUError, match=r"'h100' may be NVIDIA H100 NVL or NVIDIA H100 80GB HBM3"):
        choose_gpu("h100", DATABASES)


@pytest.mark.parametrize("text", ["sm_90", "sm90", "SM_90", "90"])
def test_an_architecture_means_a_common_gpu_of_it(text: str) -> None:
    assert choose_gpu(text, DATABASES) == REFERENCE_DEVICES[90]


def test_any_gpu_can_be_described() -> None:
    gpu = choose_gpu("NVIDIA H20:sm_90:78", NO_DATABASES)
    assert (gpu.name, gpu.arch, gpu.sm_count, gpu.backend) == ("NVIDIA H20", 90, 78, "cuda")
    assert choose_gpu("GB10:sm_121", NO_DATABASES).shared_memory_bytes == REFERENCE_DEVICES[120].shared_memory_bytes
    assert choose_gpu("NVIDIA H20:90", NO_DATABASES).sm_count == REFERENCE_DEVICES[90].sm_count


@pytest.mark.parametrize("text", ["H300", "", "sm_x", "H20:sm_90:many"])
def test_an_unknown_gpu_is_told_with_those_that_are_known(text: str) -> None:
    with pytest.raises(UnknownGPUError, match=r"NVIDIA L4.*NAME:sm_ARCH:SMS") as raised:
        choose_gpu(text, DATABASES)
    assert repr(text) in str(raised.value)


def test_an_architecture_before_all_known_ones_is_refused() -> None:
    with pytest.raises(UnknownArchitectureError, match="sm_75: name one of sm_80 or later"):
        choose_gpu("Tesla T4:sm_75:40", NO_DATABASES)


@NO_GPU
def test_without_a_gpu_the_lowest_database_says_which() -> None:
    assert choose_gpu(None, DATABASES).name == "NVIDIA H100 80GB HBM3"
    assert choose_gpu(None, NO_DATABASES) == REFERENCE_DEVICES[90]


def test_the_present_gpu_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefetch_compiler.explain_command import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "current_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(gpu, "profile", lambda device: REFERENCE_DEVICES[80])
    assert choose_gpu(None, DATABASES) == REFERENCE_DEVICES[80]


def test_identities_of_other_backends_have_profiles_too() -> None:
    amd = profile_of(DeviceIdentity("AMD Instinct MI300X", "hip", 0, 304))
    assert (amd.backend, amd.arch, amd.sm_count) == ("hip", 0, 304)
    interpreter = DeviceIdentity(INTERPRETER.name, INTERPRETER.backend, 0, INTERPRETER.sm_count)
    assert profile_of(interpreter) == INTERPRETER
    if not torch.cuda.is_available():
        assert profile_of(interpreter) == profile(torch.device("cpu"))
