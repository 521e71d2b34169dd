"""Triton's interpreter patches triton.language anew at every call of a device function, although the kernel's own
patches, of the same module, are still in place. Without that it is a third faster. (Triton's library functions use
triton.language.core, which kernels do not see.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from triton.runtime import interpreter


@contextmanager
def patched_once_per_kernel() -> Iterator[None]:
    """Inside, device functions run under their kernel's patches."""

    usual_call = interpreter.InterpretedFunction.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function.fn.__module__.startswith("triton."):
            return usual_call(function, *args, **kwargs)
        return function.rewrite()(*args, **kwargs)

    with mock.patch.object(interpreter.InterpretedFunction, "__call__", call):
        yield
