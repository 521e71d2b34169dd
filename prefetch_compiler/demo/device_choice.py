"""Where to run: on the GPU where there is one, otherwise on the CPU in Triton's interpreter."""

from __future__ import annotations

import os
import sys

import torch

from .errors import DeviceUnavailableError, UnknownDtypeError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | None) -> torch.device:
    """The device called ``name``, or by default the GPU where there is one. On the CPU the interpreter is turned on.

    Raises:
        DeviceUnavailableError: torch does not know the device, or cannot use it here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceUnavailableError(name) from error
    if device.type == "cpu":
        _turn_interpreter_on()
    elif device.type != "cuda" or not torch.cuda.is_available():
        raise DeviceUnavailableError(name)
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype called ``name``; by default bfloat16 on a GPU and float32 in the interpreter.

    Raises:
        UnknownDtypeError: not one that the kernels take.
    """
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UnknownDtypeError(name, DTYPES)
    return DTYPES[name]


def _turn_interpreter_on() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    os.environ["TRITON_INTERPRET"] = "1"
    if "triton" in sys.modules:
        # Triton read the variable when it decorated its own functions, so this process can no longer interpret.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
