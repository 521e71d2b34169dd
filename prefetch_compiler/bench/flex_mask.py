"""FlexAttention at its best: transformers asks ``create_block_mask`` to compile itself, which warns that this is
deprecated, and under torch.compile the warning breaks the graph. In a compiled model the request changes nothing else,
so it is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.attention.flex_attention import create_block_mask
from transformers import masking_utils


@contextmanager
def unbroken_block_mask() -> Iterator[None]:
    """Inside the ``with`` block, transformers builds block masks without asking for a compilation of their own."""
    original = masking_utils.create_block_mask
    masking_utils.create_block_mask = _without_own_compilation
    try:
        yield
    finally:
        masking_utils.create_block_mask = original


def _without_own_compilation(*args: Any, _compile: bool = False, **kwargs: Any) -> Any:
    return create_block_mask(*args, **kwargs)
