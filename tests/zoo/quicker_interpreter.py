"""Triton's interpreter, less three things that it does in vain, in half the time.

- It patches triton.language anew at every call of a device function, although the kernel's own patches, of the same
  module, are in place; the library's functions use triton.language.core, whose patches it never takes back.
- It computes whether integers overflow, in int64, for an assertion that only debugging kernels make.
- It builds its table of dtypes at every look into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import triton.language as tl
from triton.runtime import interpreter


@contextmanager
def quicker_interpreter() -> Iterator[None]:
    """Inside, kernels compute the same in less time."""
    builder = interpreter.interpreter_builder
    with (
        mock.patch.object(interpreter.InterpretedFunction, "__call__", _device_call()),
        mock.patch.object(builder, "options", replace(builder.options, sanitize_overflow=False)),
        mock.patch.object(interpreter, "_get_np_dtype", _remembered_dtype()),
    ):
        yield


def _device_call() -> Any:
    """What stands for the call of a device function: each of the library's is patched once."""
    usual_call = interpreter.InterpretedFunction.__call__
    patched: set[Any] = set()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function.fn.__module__.startswith("triton.") and function.fn not in patched:
            patched.add(function.fn)
            return usual_call(function, *args, **kwargs)
        return function.rewrite()(*args, **kwargs)

    return call


def _remembered_dtype() -> Any:
    """NumPy's dtype of a Triton type, asked for once for each type of elements. Blocks and pointers have no hash."""
    of_scalar = cache(interpreter._get_np_dtype)
    of_pointer = interpreter._get_np_dtype(tl.pointer_type(tl.int8))

    def dtype(triton_type: Any) -> Any:
        scalar = triton_type.scalar
        return of_pointer if isinstance(scalar, tl.pointer_type) else of_scalar(scalar)

    return dtype
