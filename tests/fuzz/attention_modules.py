"""Random attention: what models make of the spellings, masks, scales and extras that the golden graphs have singly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..contract.golden import hand_masks, partial, products, spellings
from ..contract.golden.dequantised import Dequantised
from ..contract.golden.graph import Draw
from ..contract.golden.hand_written import HandWritten
from ..contract.golden.paged import Paged
from ..contract.golden.partial import Partial
from ..contract.golden.products import Products
from ..contract.golden.three_dimensional import HEADS, Flat
from .stored_caches import dequantised_caches, paged_caches

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Module:
    """One attention as a model has it: after a write to its cache perhaps, and with its heads merged perhaps.

    Attributes:
        written: before it attends, keys and values of one position are replaced in place.
        merged: it returns (batch, q, heads * dim).
    """

    attention: Products | HandWritten | Partial | Flat | Dequantised | Paged
    written: bool = False
    merged: bool = False

    def __str__(self) -> str:
        return f"{self.attention} written={self.written} merged={self.merged}"

    def inputs(self) -> dict[str, Any]:
        (step,) = self.attention.steps()
        inputs = dict(step)
        if self.written:
            draw = Draw(77, self.attention.dtype)
            at = self.attention.length_dim
            for name in ("keys", "values"):
                shape = list(inputs[name].shape)
                shape[at] = 1
                inputs[f"new_{name}"] = draw.normal(*shape)
            inputs["position"] = torch.tensor([inputs["keys"].shape[at] // 2], device=inputs["q"].device)
        return inputs

    @property
    def sites(self) -> int:
        return 2 if isinstance(self.attention, Partial) else 1

    def program(self) -> Callable[..., Tensor]:
        attend, written, merged, at = self.attention.program(), self.written, self.merged, self.attention.length_dim

        def run(inputs: dict[str, Any]) -> Tensor:
            given = dict(inputs)
            if written:
                position = given.pop("position")
                for name in ("keys", "values"):
                    given[name].index_copy_(at, position, given.pop(f"new_{name}"))
            out = attend(**given)
            return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1) if merged else out

        return run

    def heads_apart(self, out: Tensor) -> Tensor:
        """(batch, heads, q, dim), whatever the module returns."""
        if not self.merged:
            return out
        return out.view(out.shape[0], out.shape[1], self.attention.heads, -1).transpose(1, 2)


def together(modules: Sequence[Module]) -> Callable[[list[dict[str, Any]]], tuple[Tensor, ...]]:
    """One program of all, as a model has one graph of many layers."""
    programs = [module.program() for module in modules]

    def run(inputs: list[dict[str, Any]]) -> tuple[Tensor, ...]:
        return tuple(program(given) for program, given in zip(programs, inputs, strict=True))

    return run


_FOUR_DIMENSIONAL = (
    products.with_matmul, products.with_operator, products.with_einsum, products.keys_times_queries,
    products.grouped_matmul, products.with_bmm, products.widened,
)  # fmt: skip
_SHAPES = ("1.1.1.S", "B.1.1.S", "1.H.1.S", "1.1.q.S", "B.1.q.S", "B.H.q.S")
_FILLS = ("inf", "where_inf", "min", "thousands", "taken", "both", "uniform")
_BIASES = ("add", "bias", "alibi")
WRITTEN = tuple(name for name in products.WRITTEN if name != "off_by_one")


@st.composite
def by_products(draw: st.DrawFn) -> Products:
    """Two products around a softmax."""
    spelling = draw(st.sampled_from((*_FOUR_DIMENSIONAL, products.grouped_einsum, products.length_first_einsum)))
    # In groups the scores have five dimensions, of which neither a learned scale nor a sink here knows.
    grouped = spelling is products.grouped_einsum
    scales = ("multiplied", "divided", "tensor", "after_mask", *(() if grouped else ("learned",)))
    scale_is = draw(st.sampled_from(scales))
    kinds = {"after_mask": _BIASES}.get(scale_is, (*_FILLS, *_BIASES))
    mask = draw(st.none() | st.tuples(st.sampled_from(kinds), st.sampled_from(_SHAPES)))
    # What is multiplied after its mask has the mask divided before: a power of two leaves it exact.
    scale = 0.25 if scale_is == "after_mask" else draw(st.sampled_from((0.25, 0.7, -0.4)))
    sink = draw(st.sampled_from(("none", "none", "plain", "less_maximum")))
    return Products(
        "fuzzed",
        spelling,
        mask="none" if mask is None else "-".join(mask),
        group=draw(st.integers(1, 3)),
        q_len=draw(st.sampled_from((1, 1, 2, 5))),
        batch=draw(st.sampled_from((1, 3))),
        dtype=torch.float32 if scale_is == "learned" else draw(st.sampled_from(DTYPES)),
        scale=scale,
        scale_is=scale_is,
        softcap=None if scale_is == "after_mask" else draw(st.none() | st.sampled_from((0.8, 20.0))),
        sink="none" if grouped else sink,
        softmax=draw(st.sampled_from(("float32", "method", "module", *WRITTEN))),
        length_first=spelling is products.length_first_einsum,
    )


_SPELLINGS = (
    spellings.repeat_kv, spellings.interleaved, spellings.expanded_unflattened, spellings.repeated_then_copied,
    spellings.tiled, spellings.tiled_by_expand, spellings.gathered,
)  # fmt: skip


@st.composite
def by_sdpa(draw: st.DrawFn) -> HandWritten:
    """Scaled-dot-product attention."""
    mask = draw(st.none() | st.tuples(st.sampled_from(hand_masks.KINDS), st.sampled_from(hand_masks.SHAPES)))
    length_first = draw(st.booleans())
    spelling = spellings.repeated_length_first if length_first else draw(st.sampled_from(_SPELLINGS))
    return HandWritten(
        "fuzzed",
        batch=draw(st.sampled_from((1, 3))),
        kv_heads=draw(st.sampled_from((1, 2))),
        group=draw(st.integers(1, 3)),
        q_len=draw(st.sampled_from((1, 1, 2, 5))),
        kv_len=draw(st.sampled_from((7, 20, 33))),
        head_dim=draw(st.sampled_from((16, 24))),
        dtype=draw(st.sampled_from(DTYPES)),
        mask=None if mask is None else "-".join(mask),
        is_causal=mask is None and draw(st.booleans()),
        scale=draw(st.none() | st.sampled_from((0.3, -0.5))),
        spelling=spelling,
        length_first=length_first,
    )


_PARTS = (partial.by_softmax, partial.by_exponentials, partial.by_lse, partial.by_groups)


def in_parts() -> st.SearchStrategy[Partial]:
    """Two parts of a cache, merged by their log-sum-exps."""
    return st.builds(
        Partial,
        st.just("fuzzed"),
        part=st.sampled_from(_PARTS),
        merge=st.sampled_from((partial.by_log_add, partial.by_shares)),
        q_len=st.sampled_from((1, 1, 2, 5)),
        shared=st.booleans(),
        masked=st.booleans(),
        sink=st.booleans(),
    )


@st.composite
def by_flat_sdpa(draw: st.DrawFn) -> Flat:
    """SDPA of three dimensions."""
    shapes = [shape for shape in hand_masks.SHAPES if "B" not in shape and shape.count(".") < 3]
    mask = draw(st.none() | st.tuples(st.sampled_from(hand_masks.KINDS), st.sampled_from(shapes)))
    kv_heads = draw(st.sampled_from((1, 2, 3, HEADS)))
    return Flat(
        "fuzzed",
        kv_heads=kv_heads,
        q_len=draw(st.sampled_from((1, 1, 2, 5))),
        mask=None if mask is None else "-".join(mask),
        is_causal=mask is None and draw(st.booleans()),
        scale=draw(st.none() | st.sampled_from((0.3, -0.5))),
        enable_gqa=draw(st.booleans()),
        dtype=draw(st.sampled_from(DTYPES)),
    )


@st.composite
def modules(draw: st.DrawFn) -> Module:
    # More of what has more variants.
    kind = draw(st.integers(0, 7))
    if kind == 6:
        # These write to their caches themselves.
        return Module(draw(dequantised_caches() | paged_caches()), False, draw(st.booleans()))
    attention = draw(in_parts() | by_flat_sdpa() if kind == 7 else by_products() | by_sdpa())
    return Module(attention, draw(st.booleans()), draw(st.booleans()))


__all__ = ["Module", "modules", "together"]
