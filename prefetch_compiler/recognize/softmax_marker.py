"""The marker of a softmax between two matrix products: an operator that survives AOTAutograd as one node.

Decomposed, a softmax is five operators that other code writes too. Run as it is, the marker computes the softmax.
"""

from __future__ import annotations

import torch

from .marker import library

library.define(
    "marked_softmax(Tensor scores, ScalarType? dtype, int site) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


def call_softmax(scores: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """What a marked softmax means: over the last dimension, computed and returned in ``dtype`` where it is given."""
    return torch.softmax(scores, -1, dtype=dtype)


@torch.library.impl(library, "marked_softmax", "CompositeExplicitAutograd")
def _run(scores: torch.Tensor, dtype: torch.dtype | None, site: int) -> torch.Tensor:
    return call_softmax(scores, dtype)


@torch.library.impl(library, "marked_softmax", "Meta")
def _fake(scores: torch.Tensor, dtype: torch.dtype | None, site: int) -> torch.Tensor:
    return call_softmax(scores, dtype)


MARKED_SOFTMAX = torch.ops.kvprefetch.marked_softmax.default
