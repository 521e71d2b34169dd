"""The oracle: what scaled dot-product attention means, in float64, and what plain PyTorch makes of it in its dtype.

Shapes and names are those of :mod:`prefetch_compiler.spec`. The semantics are those of
``torch.nn.functional.scaled_dot_product_attention`` (torch 2.11, ``aten/src/ATen/native/transformers/attention.cpp``):

- query head ``h`` attends to KV head ``h // group``;
- a bool mask hides where it is False, as if -inf were added to the score; a float mask is added to the score;
- ``is_causal`` is aligned to the top left: query ``i`` sees keys ``0..i``, however many keys there are;
- ``softcap`` c makes scores ``c * tanh(score / c)`` before the mask (Gemma 2, arXiv 2408.00118); ``sink`` is one more
  logit per query head, whose share of the softmax is dropped (gpt-oss, arXiv 2508.10925);
- a row whose scores are all -inf gives zeros (``_safe_softmax``). A row masked by a finite value is no such row: a
  value like finfo.min swamps the scores and leaves the plain average of every key.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exact_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """The oracle, in float64: (batch, query_heads, q_len, value_dim).

    The inputs are taken as exact numbers. ``scale`` defaults to 1 / sqrt(head_dim).

    Raises:
        ValueError: a mask together with ``is_causal``, which SDPA refuses too, or head counts that do not divide.
    """
    exact_mask = mask.to(torch.float64) if mask is not None and mask.is_floating_point() else mask
    exact_sink = None if sink is None else sink.double()
    return _attend(q.double(), k.double(), v.double(), exact_mask, is_causal, scale, softcap, exact_sink, torch.float64)


def exact_lse(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """The oracle of the log-sum-exp of each row's scores, in float64: (batch, query_heads, q_len)."""
    exact_mask = mask.to(torch.float64) if mask is not None and mask.is_floating_point() else mask
    scores = _scores(q.double(), k.double(), exact_mask, is_causal, scale, softcap, torch.float64)
    return torch.logsumexp(_with_sink(scores, sink), -1)


def same_dtype_lse(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """The same of the scores that :func:`same_dtype_attention` has: float32 (batch, query_heads, q_len)."""
    scores = _scores(q, k, mask, is_causal, scale, softcap, torch.float32)
    return torch.logsumexp(_with_sink(scores, sink), -1)


def same_dtype_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> Tensor:
    """The same computed as eager PyTorch code does, in the dtype of ``q``: two matmuls around a float32 softmax.

    Scores, probabilities and output are each rounded to that dtype. Its error against :func:`exact_attention` is the
    yardstick for a kernel, which rounds no score and so should err less.
    """
    return _attend(q, k, v, mask, is_causal, scale, softcap, sink, torch.float32)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    softcap: float | None,
    sink: Tensor | None,
    softmax_dtype: torch.dtype,
) -> Tensor:
    if v.shape[1] != k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads over {k.shape[1]} key heads and {v.shape[1]} value heads")
    masked = _scores(q, k, mask, is_causal, scale, softcap, softmax_dtype)
    if sink is None:
        weights = _safe_softmax(masked)
    else:
        weights = torch.softmax(_with_sink(masked, sink), -1)[..., :-1]
    return torch.matmul(weights.to(v.dtype), _repeat_heads(v, _group(q, k)))


def _scores(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    softcap: float | None,
    softmax_dtype: torch.dtype,
) -> Tensor:
    """What the softmax is taken of, less the sink: (batch, query_heads, q_len, kv_len)."""
    scores = torch.matmul(q, _repeat_heads(k, _group(q, k)).transpose(-1, -2)) * _scale_or_default(scale, q)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return (scores + _additive(mask, scores, is_causal)).to(softmax_dtype)


def _with_sink(scores: Tensor, sink: Tensor | None) -> Tensor:
    if sink is None:
        return scores
    column = sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1)


def _group(q: Tensor, k: Tensor) -> int:
    """Query heads per KV head."""
    query_heads, kv_heads = q.shape[1], k.shape[1]
    if query_heads % kv_heads:
        raise ValueError(f"{query_heads} query heads over {kv_heads} key heads")
    return query_heads // kv_heads


def _repeat_heads(x: Tensor, group: int) -> Tensor:
    """(batch, kv_heads, kv_len, dim) to (batch, kv_heads * group, kv_len, dim): head ``h`` becomes ``h // group``."""
    return x.repeat_interleave(group, dim=1)


def _scale_or_default(scale: float | None, q: Tensor) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale


def _additive(mask: Tensor | None, scores: Tensor, is_causal: bool) -> Tensor:
    """What to add to the scores, in a shape that broadcasts to theirs."""
    if mask is not None and is_causal:
        raise ValueError("a mask and is_causal exclude each other, as in SDPA")
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores.new_zeros(())
    if mask.is_floating_point():
        return mask
    return scores.new_zeros(mask.shape).masked_fill_(mask.logical_not(), float("-inf"))


def _safe_softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; zeros where a row is -inf throughout."""
    nothing_visible = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return torch.softmax(scores, dim=-1).masked_fill(nothing_visible, 0.0)
