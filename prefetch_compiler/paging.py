"""Paged caches in plain PyTorch: where no kernel serves, and where one is checked."""

from __future__ import annotations

import torch
from torch import Tensor

from .spec import QUANTISED_FORMATS


def in_one_piece(pool: Tensor, table: Tensor) -> Tensor:
    """A copy of the pages that ``table`` (batch, pages of a sequence) names, whose entries must all be pages.

    Args:
        pool: (pages, kv_heads, page_size, ...): K, V, or scales of tokens.

    Returns:
        (batch, kv_heads, pages of a sequence * page_size, ...).
    """
    # Indexing is not defined for numbers of one byte on every device.
    stored = pool.view(torch.uint8) if pool.dtype in QUANTISED_FORMATS else pool
    return stored[table.long()].transpose(1, 2).flatten(2, 3).view(pool.dtype)
