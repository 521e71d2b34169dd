"""Whether the installed Triton can compile Gluon, the language of kernels that assign work to warps themselves."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec


@cache
def has_gluon() -> bool:
    """Whether there is a Triton, and its Gluon has the instructions of sm_90. It is experimental: any release may move
    it."""
    try:
        return find_spec("triton.experimental.gluon.language.nvidia.hopper") is not None
    except ImportError:
        return False
