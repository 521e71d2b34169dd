"""What can be wrong with a tuning job that was asked for."""

from __future__ import annotations

from ..errors import KVPrefetchError


class InterpretedCompileError(KVPrefetchError):
    """Compiling for a GPU was asked for in a process that interprets kernels."""

    def __init__(self) -> None:
        super().__init__("TRITON_INTERPRET=1 is set, and interpreted kernels cannot be compiled; unset it.")
