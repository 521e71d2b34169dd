"""Where the command line's models run, and that the interpreter is on before Triton is loaded."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from prefetch_compiler.demo import device_choice
from prefetch_compiler.demo.errors import DeviceUnavailableError, UnknownDtypeError


def test_the_default_is_the_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if expected == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # as the suite has it already
    assert device_choice.choose_device(None).type == expected


@pytest.mark.parametrize("name", ["tpu9", "meta"])
def test_a_device_that_cannot_run_kernels_is_refused(name: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=name):
        device_choice.choose_device(name)


def test_the_process_starts_again_if_triton_was_loaded_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton", sys)
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append([program, *command]))
    device_choice.choose_device("cpu")
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert commands == [[sys.executable, sys.executable, *sys.orig_argv[1:]]]


def test_a_process_without_triton_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    assert device_choice.choose_device("cpu") == torch.device("cpu")
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_the_default_dtype_follows_the_device() -> None:
    assert device_choice.choose_dtype(None, torch.device("cuda")) is torch.bfloat16
    assert device_choice.choose_dtype(None, torch.device("cpu")) is torch.float32


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UnknownDtypeError, match="int3"):
        device_choice.choose_dtype("int3", torch.device("cpu"))
