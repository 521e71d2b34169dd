"""What a golden graph is: a small program with one form of decode attention, and what must be recognised in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefetch_compiler.spec import AttentionSpec, TensorLayout

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Golden:
    """One form.

    Attributes:
        program: takes the keyword arguments of one step and returns the output of every attention in it.
        steps: the inputs of each call, in order; made anew at every call, and always the same. Tensors that a program
            writes to may be shared by steps.
        specs: every site of every graph that the steps compile, in order. ``out_heads_first`` does not count: SDPA's
            own output differs in it from device to device.
        recogniser: name of the function that must find them.
    """

    name: str
    program: Callable[..., Tensor | tuple[Tensor, ...]]
    steps: Callable[[], Sequence[Inputs]]
    specs: tuple[AttentionSpec, ...]
    recogniser: str = "recognise_marked_sdpa"

    def __str__(self) -> str:
        return self.name


class Draw:
    """Reproducible tensors on DEVICE."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(DEVICE, self._dtype)

    def visible(self, *shape: int, share: float = 0.5) -> Tensor:
        """A bool mask in which each entry is True with probability ``share``."""
        return (torch.rand(shape, generator=self._generator) < share).to(DEVICE)


@dataclass
class Attention:
    """The operands of one attention, copied; shapes as in AttentionSpec."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float
    softcap: float | None = None
    sink: Tensor | None = None


_notes: list[Attention] = []


def note(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None, sink: Tensor | None
) -> None:
    """Programs that do not call SDPA say here what they compute. Compiled, this is nothing."""
    if not torch.compiler.is_compiling():
        copies = [None if x is None else x.clone() for x in (q, k, v, mask, sink)]
        _notes.append(Attention(*copies[:4], False, scale, softcap, copies[4]))  # type: ignore[arg-type]


def noted() -> list[Attention]:
    """What was noted since the last call."""
    found = list(_notes)
    _notes.clear()
    return found


def repeat_kv(x: Tensor, times: int) -> Tensor:
    """Repeat-KV as transformers writes it."""
    batch, heads, length, dim = x.shape
    if times == 1:
        return x
    x = x[:, :, None, :, :].expand(batch, heads, times, length, dim)
    return x.reshape(batch, heads * times, length, dim)


def each_head_by_itself(spec: AttentionSpec) -> AttentionSpec:
    """``spec`` of caches heads first, whose KV heads are sequences with bounds of their own."""
    return replace(
        spec,
        batch=spec.batch * spec.kv_heads,
        query_heads=spec.group,
        kv_heads=1,
        key_layout=replace(spec.key_layout, batch_stride=spec.key_layout.head_stride),
        value_layout=replace(spec.value_layout, batch_stride=spec.value_layout.head_stride),
    )


def heads_first(heads: int, length: int, dim: int) -> TensorLayout:
    """(batch, heads, length, dim), contiguous."""
    return TensorLayout(heads * length * dim, length * dim, dim)


def length_first(heads: int, length: int, dim: int) -> TensorLayout:
    """(batch, length, heads, dim), contiguous."""
    return TensorLayout(length * heads * dim, dim, heads * dim)
