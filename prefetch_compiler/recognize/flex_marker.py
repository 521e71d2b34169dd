"""The marker of FlexAttention: an operator that hands on what flex attention computed, and numbers the site.

FlexAttention is one node all the way, submodules and all, so the marker need not stand in for it: it stands behind it.
A site that is left alone loses the marker and nothing else.
"""

from __future__ import annotations

import torch

from .marker import library

library.define("marked_flex(Tensor out, int site) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


def hand_on(out: torch.Tensor) -> torch.Tensor:
    """What a marked site means."""
    return out


@torch.library.impl(library, "marked_flex", "CompositeExplicitAutograd")
def _run(out: torch.Tensor, site: int) -> torch.Tensor:
    return out.clone()  # an operator's result must not be its operand


@torch.library.impl(library, "marked_flex", "Meta")
def _fake(out: torch.Tensor, site: int) -> torch.Tensor:
    return torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)


MARKED_FLEX = torch.ops.kvprefetch.marked_flex.default
