"""Variant: one way to run the decode step. All of them share one model and one cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InvalidOptionError

BACKEND = "kvprefetch"


@dataclass(frozen=True)
class Variant:
    """A torch.compile backend together with a transformers ``attn_implementation``."""

    name: str
    backend: str
    attention: str

    @property
    def is_ours(self) -> bool:
        return self.backend == BACKEND


BASELINE = Variant("inductor+sdpa", "inductor", "sdpa")
FLEX = Variant("inductor+flex", "inductor", "flex_attention")
OURS = Variant("kvprefetch", BACKEND, "sdpa")
VARIANTS = (BASELINE, FLEX, OURS)


def parse_variants(text: str) -> tuple[Variant, ...]:
    """A comma-separated list of variant names.

    Raises:
        InvalidOptionError: a name is unknown.
    """
    known = {variant.name: variant for variant in VARIANTS}
    chosen = []
    for name in (part.strip() for part in text.split(",")):
        if name not in known:
            raise InvalidOptionError("variants", name, f"one of {', '.join(known)}")
        chosen.append(known[name])
    return tuple(chosen)


def resolve_backend(name: str) -> str | Callable[..., Any]:
    """The name where torch.compile knows it; in a checkout that is not installed, our backend function itself."""
    if name != BACKEND or name in torch.compiler.list_backends(exclude_tags=()):
        return name
    from .. import kvprefetch

    backend: Callable[..., Any] = kvprefetch
    return backend
