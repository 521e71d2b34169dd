"""Scaled-dot-product attention in a captured graph: is this call decode attention that the templates can serve?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

from ..device import interpreting
from ..errors import Refused
from ..spec import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MAX_LATENT_DIM, MAX_Q_LEN, ROPE_DIMS, SUPPORTED_DTYPES
from .captured import captured_value
from .sizes import Size, fixed, hint, holds, is_symbolic, same

# As Dynamo has it, and torch.export; the parameters of both have the same names.
_TARGETS = (F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention.default)
_PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


class NotDecode(Refused):
    """Attention that is rightly Inductor's (prefill, training, dropout): no failure, not even under ``strict``."""


@dataclass(frozen=True)
class SdpaCall:
    """One SDPA call of a captured graph that may be marked: nodes and constants of a 4-D call."""

    q: torch.fx.Node
    k: torch.fx.Node
    v: torch.fx.Node
    mask: torch.fx.Node | None
    is_causal: bool
    scale: float | None
    enable_gqa: bool
    heads_first: bool


def is_sdpa(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and node.target in _TARGETS


def marker_arguments(node: torch.fx.Node, any_device: bool = False) -> tuple[Any, ...]:
    """What the marker that replaces an SDPA node is called with, less the site's number; raises as :func:`parse`."""
    call = parse(node, any_device)
    return call.q, call.k, call.v, call.mask, call.is_causal, call.scale, call.enable_gqa, call.heads_first


def parse(node: torch.fx.Node, any_device: bool = False) -> SdpaCall:
    """Read one SDPA node.

    Args:
        any_device: whether a device that cannot run the kernels will do, as when the site is only looked at.

    Raises:
        NotDecode: it is attention, but not decode attention.
        Refused: it is decode attention of a kind that the templates do not serve.
    """
    arguments = {**_DEFAULTS, **dict(zip(_PARAMETERS, node.args, strict=False)), **node.kwargs}
    q, k, v = (_tensor(arguments[name], name) for name in ("query", "key", "value"))
    mask = None if arguments["attn_mask"] is None else _tensor(arguments["attn_mask"], "attn_mask")
    out = _value(node)
    require_inference(q, k, v, mask)
    _require_no_dropout(arguments["dropout_p"])
    require_decode_operands(q, k, v, mask, node, enable_gqa=arguments["enable_gqa"], any_device=any_device)
    is_causal = _constant(arguments["is_causal"], bool, "is_causal")
    if is_causal and mask is not None:
        raise Refused("is_causal=True together with attn_mask, which SDPA itself rejects: pass one of the two")
    if mask is not None:
        _require_mask_shape(_value(mask), _value(q), _value(k))
    return SdpaCall(
        q,
        k,
        v,
        mask,
        is_causal,
        _scale(arguments["scale"]),
        _constant(arguments["enable_gqa"], bool, "enable_gqa"),
        is_heads_first(out),
    )


def require_decode_operands(
    q: torch.fx.Node,
    k: torch.fx.Node,
    v: torch.fx.Node,
    mask: torch.fx.Node | None,
    out: torch.fx.Node,
    *,
    enable_gqa: Any,
    any_device: bool,
) -> None:
    """Operands and output of one attention of a captured graph that the templates may serve.

    Raises:
        NotDecode: it is prefill.
        Refused: it is decode attention of a kind that the templates do not serve.
    """
    _require_four_dimensions(_value(q), _value(k), _value(v))
    require_decode_length(_value(q).shape[2])
    require_dtypes(_value(q), _value(k), _value(v), None if mask is None else _value(mask), _value(out))
    if not any_device:
        require_device(_value(q))
    _fix_heads_and_dims(_value(q), _value(k), _value(v))
    _require_shapes(_value(q), _value(k), _value(v), enable_gqa)


def _value(node: torch.fx.Node) -> torch.Tensor:
    value = captured_value(node)
    if not isinstance(value, FakeTensor):
        raise Refused(f"{node.name} is not a plain tensor ({type(value).__name__}): pass a torch.Tensor, no subclass")
    return value


def _tensor(argument: Any, name: str) -> torch.fx.Node:
    if not isinstance(argument, torch.fx.Node):
        raise Refused(f"{name} is not a tensor of the graph: pass it as a tensor")
    _value(argument)
    return argument


def _constant(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise Refused(f"{name} is not a constant of the graph: pass True or False")
    return value


def _specialised(scale: Any) -> float | None:
    """A module's float, which ``dynamic=True`` makes an input of the graph: tracing SDPA has fixed its value already,
    with a guard. A number that depends on data has none."""
    value = scale.meta.get("example_value") if isinstance(scale, torch.fx.Node) else None
    known = value.node.maybe_as_float() if isinstance(value, torch.SymFloat) else None
    return None if known is None else float(known)


def _scale(scale: Any) -> float | None:
    if scale is None:
        return None
    if isinstance(scale, int | float) and not isinstance(scale, bool):
        return float(scale)
    known = _specialised(scale)
    if known is not None:
        return known
    raise Refused("scale is not a constant of the graph: pass a Python float, or multiply the query by the scale")


def require_inference(*operands: torch.fx.Node | None) -> None:
    """No gradients, or NotDecode."""
    if any(operand is not None and _value(operand).requires_grad for operand in operands):
        raise NotDecode("gradients are on: run under torch.no_grad() or torch.inference_mode()")


def _require_no_dropout(dropout_p: Any) -> None:
    if not (isinstance(dropout_p, int | float) and dropout_p == 0):
        raise NotDecode(f"dropout_p is {dropout_p}: call model.eval()")


def _require_four_dimensions(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, tensor in (("query", q), ("key", k), ("value", v)):
        if tensor.ndim != 4:
            raise Refused(f"{name} has {tensor.ndim} dimensions: reshape it to (batch, heads, length, head_dim)")


def _fix_heads_and_dims(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Guard on the number of heads and head_dim where ``dynamic=True`` made them symbols: kernels are compiled for
    them, and they never change in a model."""
    for name, tensor in (("query", q), ("key", k), ("value", v)):
        for dim in (1, 3):
            size = tensor.shape[dim]
            if is_symbolic(size) and hint(size, 0) == 0:
                raise Refused(
                    f"the number of heads or head_dim of {name} depends on data: take both from the configuration"
                )
            fixed(size, f"the number of heads or head_dim of {name}")


def _require_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, enable_gqa: Any) -> None:
    require_head_dims(q, k, v)
    if k.shape[3] != q.shape[3]:
        raise Refused(f"query head_dim {q.shape[3]} differs from key head_dim {k.shape[3]}: make them equal")
    if k.shape[1] != v.shape[1]:
        raise Refused(f"key has {k.shape[1]} heads and value {v.shape[1]}: repeat the fewer ones")
    if not same(k.shape[0], v.shape[0]):
        raise Refused(f"key and value differ in batch, {k.shape[0]} and {v.shape[0]}: expand one of them")
    if not (same(k.shape[0], q.shape[0]) or same(k.shape[0], 1)):
        raise Refused(
            f"the query is broadcast over the batch of the keys, {q.shape[0]} over {k.shape[0]}: expand the query"
        )
    _require_head_ratio(int(q.shape[1]), int(k.shape[1]), enable_gqa)
    if same(k.shape[2], 0):
        raise Refused(
            "there are no keys: run the prompt through the model first, or pass cache_implementation='static'"
        )


def require_head_dims(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Head dims that kernels are compiled for, or Refused."""
    if _may_be_latents(k, v) and q.shape[3] == k.shape[3]:
        return
    for name, dim in (("head_dim", q.shape[3]), ("key head_dim", k.shape[3]), ("value head_dim", v.shape[3])):
        if dim % HEAD_DIM_MULTIPLE or not 0 < dim <= MAX_HEAD_DIM:
            raise Refused(
                f"{name} is {dim}; supported are multiples of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}: "
                "pad narrower heads with zeros to such a size, and leave wider ones to Inductor"
            )


def _may_be_latents(k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether keys may be latents with rotary keys beside them, and values the latents: wider than other heads."""
    latent_dim, rope_dim = int(v.shape[3]), int(k.shape[3]) - int(v.shape[3])
    return latent_dim % HEAD_DIM_MULTIPLE == 0 and latent_dim <= MAX_LATENT_DIM and rope_dim in ROPE_DIMS


def _require_head_ratio(query_heads: int, kv_heads: int, enable_gqa: Any) -> None:
    divisible = kv_heads > 0 and query_heads % kv_heads == 0
    if query_heads != kv_heads and not (kv_heads == 1 or (enable_gqa is True and divisible)):
        raise Refused(
            f"{query_heads} query heads do not share {kv_heads} KV heads evenly: pass enable_gqa=True where the first "
            "is a multiple of the second, or repeat the KV heads"
        )


def require_dtypes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, out: torch.Tensor
) -> None:
    """One dtype that the kernels read, for all, or Refused."""
    if q.dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)
        raise Refused(
            f"dtype {q.dtype} is not supported; supported are {names}: load the model with one of these as its dtype"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise Refused(
            f"mixed dtypes {q.dtype}, {k.dtype}, {v.dtype} of query, key and value: make the cache's dtype the model's"
        )
    if out.dtype != q.dtype:
        raise Refused(
            f"autocast changes {q.dtype} operands to {out.dtype}: load the model in that dtype, without autocast"
        )
    if mask is not None and mask.dtype != torch.bool and mask.dtype not in SUPPORTED_DTYPES:
        raise Refused(f"mask dtype {mask.dtype} is not supported: pass a bool mask, or one in {q.dtype}")


def require_decode_length(q_len: Size) -> None:
    """At most MAX_Q_LEN queries, or NotDecode. A symbolic length adds a guard only where it holds, so prefill graphs
    stay general."""
    if hint(q_len, MAX_Q_LEN + 1) > MAX_Q_LEN:
        raise NotDecode(f"prefill: {q_len} queries, more than {MAX_Q_LEN}: decode at most {MAX_Q_LEN} at a time")
    if not holds(q_len <= MAX_Q_LEN, f"there are at most {MAX_Q_LEN} queries"):
        raise NotDecode(f"prefill: {q_len} queries, more than {MAX_Q_LEN}: decode at most {MAX_Q_LEN} at a time")


def require_device(q: torch.Tensor) -> None:
    """A device that the kernels run on, or Refused."""
    if q.device.type == "cuda" or (q.device.type == "cpu" and interpreting()):
        return
    if q.device.type == "cpu":
        raise Refused(
            "on the CPU only Triton's interpreter can run the kernels: set TRITON_INTERPRET=1 before importing"
        )
    raise Refused(f"device {q.device.type} has no Triton kernels here: move the model to 'cuda'")


def _require_mask_shape(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> None:
    if mask.ndim > 4:
        raise Refused(f"attn_mask has {mask.ndim} dimensions: pass at most 4, (batch, heads, queries, keys)")
    full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    for have, want in zip(reversed(mask.shape), reversed(full), strict=False):
        if not (same(have, want) or same(have, 1)):
            raise Refused(
                f"attn_mask {tuple(mask.shape)} does not broadcast to {full}: build it for the whole cache, as long as "
                "its keys"
            )


def is_heads_first(out: torch.Tensor) -> bool:
    """The memory order of attention's own output, which code after it may rely on (``view``)."""
    if _dense_in_order(out, (0, 2, 1, 3)):
        return False
    if _dense_in_order(out, (0, 1, 2, 3)):
        return True
    raise Refused(
        f"the output of attention has strides {tuple(out.stride())}, which is neither usual memory order: pass the "
        "query contiguous, or as the transpose of (batch, queries, heads, head_dim)"
    )


def _dense_in_order(tensor: torch.Tensor, order: tuple[int, ...]) -> bool:
    expected: Size = 1
    for dim in reversed(order):
        if not same(tensor.shape[dim], 1) and not same(tensor.stride(dim), expected):
            return False
        expected = expected * tensor.shape[dim]
    return True
