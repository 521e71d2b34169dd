"""What a peer is: something that may be installed, may take a case, and then launches attention.

Everything that a serving engine does once a step (planning, scheduling, workspaces, block masks) and everything that is
compiled belongs into ``prepare``; what it returns only launches, waits for nothing, and can be captured in a CUDA
graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..cases import Case
from ..operands import Operands

_TOLD_CHARACTERS = 4000

# (q, k, v) of one launch, as in Operands -> (batch, query_heads, head_dim).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class UnsupportedCaseError(Exception):
    """A peer does not take a case; its text says why, for people."""


class Peer(Protocol):
    """One way to compute attention."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    def unavailable(self) -> str | None:
        """Why this peer cannot be used on this machine at all, or None."""

    def unsupported(self, case: Case) -> str | None:
        """Why it does not take ``case``, as far as that is known without trying; or None."""

    def prepare(self, operands: Operands) -> Attend:
        """Whatever comes before a launch.

        Raises:
            UnsupportedCaseError: it does not take the case.
        """


def load(module: str, *names: str) -> Any:
    """Import ``module``, and see that it has ``names``.

    Raises:
        ImportError, AttributeError, or whatever else the module's own code raises.
    """
    found = importlib.import_module(module)
    for name in names:
        getattr(found, name)
    return found


def why_not_loaded(module: str, *names: str) -> str | None:
    """The reason why ``module`` cannot be used, or None. Libraries of kernels fail in many ways when imported."""
    try:
        load(module, *names)
    except ModuleNotFoundError as error:
        return f"not installed: no module {error.name!r}" if error.name else f"not installed: {error}"
    except Exception as error:
        return f"cannot be loaded: {first_line(error)}"
    return None


def first_line(error: BaseException) -> str:
    """``RuntimeError: what happened``: what an exception says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def told(error: BaseException) -> str:
    """``RuntimeError: what happened``, all of it; compilers tell pages, of which the beginning is kept."""
    return f"{type(error).__name__}: {str(error).strip()}"[:_TOLD_CHARACTERS]


def paged_reason(case: Case) -> str | None:
    """What peers say that know no page tables."""
    return "takes no paged caches" if case.layout.page_size is not None else None


def as_rows(q: Tensor) -> Tensor:
    """(batch, heads, 1, dim) contiguous as (batch, 1, heads, dim), which is the same memory."""
    batch, heads, _, dim = q.shape
    return q.view(batch, 1, heads, dim)


def is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16)
