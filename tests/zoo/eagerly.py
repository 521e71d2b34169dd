"""Two things that transformers does on its own account, taken back: it compiles FlexAttention where the model is not
compiled, and computes softmax in float32 where the model is float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import flex_attention
from transformers import masking_utils
from transformers.integrations import flex_attention as integration


@contextmanager
def nothing_compiled() -> Iterator[None]:
    """Inside, FlexAttention and its masks are computed by PyTorch's own eager code."""

    def block_mask(*args: Any, **kwargs: Any) -> Any:
        return flex_attention.create_block_mask(*args, **kwargs | {"_compile": False})

    def attention(*args: Any, training: bool = False, **kwargs: Any) -> Any:
        return flex_attention.flex_attention(*args, **kwargs)

    with (
        mock.patch.object(masking_utils, "create_block_mask", block_mask),
        mock.patch.object(integration, "compile_friendly_flex_attention", attention),
    ):
        yield


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Inside, a softmax of float64 stays float64. In float32 the mask's float64 minimum is minus infinity, and a row
    that masks everything is NaN."""
    softmax = functional.softmax

    def in_own_dtype(scores: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return softmax(scores, *args, dtype=None if scores.dtype == torch.float64 else dtype, **kwargs)

    with mock.patch.object(functional, "softmax", in_own_dtype):
        yield
