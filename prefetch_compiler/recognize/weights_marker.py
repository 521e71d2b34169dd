"""The marker of a softmax that is written out: an operator that hands on the probabilities, and numbers the site.

Exponentials and sums stay what they are on their way through AOTAutograd, so nothing has to stand in for them. A site
that is left alone loses the marker and nothing else.
"""

from __future__ import annotations

import torch

from .marker import library

library.define("marked_weights(Tensor weights, int site) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def hand_on_weights(weights: torch.Tensor) -> torch.Tensor:
    """What a marked site means."""
    return weights


@torch.library.impl(library, "marked_weights", "CompositeExplicitAutograd")
def _run(weights: torch.Tensor, site: int) -> torch.Tensor:
    return weights.clone()  # an operator's result must not be its operand


@torch.library.impl(library, "marked_weights", "Meta")
def _fake(weights: torch.Tensor, site: int) -> torch.Tensor:
    return torch.empty_like(weights)


MARKED_WEIGHTS = torch.ops.kvprefetch.marked_weights.default
