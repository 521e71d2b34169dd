"""``nn.MultiheadAttention``: one node in the Dynamo graph, whose attention shows when AOTAutograd runs it.

The stand-in runs PyTorch's own code with one difference: where that calls scaled-dot-product attention, or the softmax
that it has in its place when the weights are asked for, the markers of those forms are called.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from ..errors import Refused
from .marker import MARKED_SDPA
from .sdpa import NotDecode, require_decode_length, require_device, require_dtypes, require_head_dims
from .softmax_marker import MARKED_SOFTMAX


def is_multi_head(node: Node) -> bool:
    return node.op == "call_function" and node.target is F.multi_head_attention_forward


def stand_in_arguments(node: Node, any_device: bool = False) -> tuple[Any, ...]:
    """What :func:`marked_multi_head_attention` is called with, less the site's number.

    Raises:
        NotDecode: it is attention, but not decode attention.
        Refused: it runs where no kernel does.
    """
    arguments: dict[str, Any] = dict(zip(_PARAMETERS, node.args, strict=False)) | dict(node.kwargs)
    query = arguments["query"].meta["example_value"]
    output, _ = node.meta["example_value"]
    if output.requires_grad:
        raise NotDecode("gradients are on: run under torch.no_grad() or torch.inference_mode()")
    if arguments.get("training", True) and arguments["dropout_p"]:
        raise NotDecode(f"dropout_p is {arguments['dropout_p']}: call model.eval()")
    require_decode_length(query.shape[0])
    if not any_device:
        require_device(query)
    return tuple(node.args), dict(node.kwargs)


def marked_multi_head_attention(arguments: tuple[Any, ...], options: dict[str, Any], site: int) -> Any:
    """``F.multi_head_attention_forward(*arguments, **options)`` with its attention marked as ``site``."""

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        return _marked_sdpa(site, q, k, v, *rest, **named)

    def softmax(scores: torch.Tensor, dim: int) -> torch.Tensor:
        marked: torch.Tensor = MARKED_SOFTMAX(scores, None, site)
        return marked if dim in (-1, scores.ndim - 1) else F.softmax(scores, dim=dim)

    # Tracing is under a mode that would have the original called.
    ours = {"scaled_dot_product_attention": sdpa, "softmax": softmax, "has_torch_function": lambda tensors: False}
    return _with_names(F.multi_head_attention_forward, **ours)(*arguments, **options)


_PARAMETERS = F.multi_head_attention_forward.__code__.co_varnames[
    : F.multi_head_attention_forward.__code__.co_argcount
]  # fmt: skip


def _marked_sdpa(
    site: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> torch.Tensor:
    try:
        require_dtypes(q, k, v, attn_mask, q)
        require_head_dims(q, k, v)
    except Refused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal)
    # What follows makes its input contiguous in another order than either.
    marked: torch.Tensor = MARKED_SDPA(q, k, v, attn_mask, is_causal, None, False, True, site)
    return marked


def _with_names(function: Any, **names: Any) -> Any:
    """A copy of a Python function in which these global names mean something else."""
    copy = FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
