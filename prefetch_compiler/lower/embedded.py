"""One decode attention as kernel launches in the graph itself, where AOTInductor compiles them into its package.

Unlike our operator, which is Python, they can be launched where there is none. What a graph's launches cannot have is
left out of the configuration: TMA descriptors and launch overlap, which are launch arguments that Inductor does not
hand on, and prefetches, whose inline assembly PyTorch's analysis of what a kernel writes to gives up on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from ..config import KernelConfig, LoadPath, PrefetchKind
from ..device import interpreting
from ..errors import Refused
from ..recognize.sizes import is_symbolic
from ..recognize.trace import inline
from ..spec import AttentionSpec
from .launch import allocate, calls_of
from .specialise import KernelCall

# What a report says of a configuration that lost something.
LEFT_OUT = "TMA, prefetches and launch overlap left out, because the kernels are embedded"


def embeddable(config: KernelConfig) -> KernelConfig:
    """``config`` as far as launches in a graph can have it."""
    return replace(
        config,
        load_path=LoadPath.POINTER,
        prefetch_depth=0,
        prefetch_kind=PrefetchKind.LINE,
        prologue_prefetch=False,
        launch_overlap=False,
    )


def is_embeddable(spec: AttentionSpec) -> bool:
    """Whether launches can be emitted: over plain caches, for the output alone."""
    return spec.cache is None and not spec.page_size and not spec.rope_dim and not spec.lse


def require_embeddable(operands: Sequence[Node]) -> None:
    """Sizes and strides that are numbers, on a device for which kernels are compiled, or Refused."""
    if interpreting():
        raise Refused("Triton's interpreter compiles no kernels that could be embedded: compile on a GPU")
    for node in operands:
        value: Tensor = node.meta["val"]
        if any(is_symbolic(size) for size in (*value.shape, *value.stride())):
            raise Refused("embedded kernels are launched with fixed sizes: export the program without dynamic shapes")


def emit_launches(
    graph: Graph,
    before: Node,
    q: Node,
    k: Node,
    v: Node,
    mask: Node | None,
    bounds: Node | None,
    sink: Node | None,
    *,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    heads_first: bool,
    config: KernelConfig,
) -> Node:
    """The launches of ``launch_decode``, in a functional graph. ``mask`` is 4-D and not expanded.

    Raises:
        Refused: as :func:`require_embeddable`.
    """
    given = {"q": q, "k": k, "v": v, "mask": mask, "bounds": bounds, "sink": sink}
    operands = {name: node for name, node in given.items() if node is not None}
    require_embeddable(list(operands.values()))

    def launch(*tensors: Tensor) -> Tensor:
        by_name: dict[str, Any] = dict.fromkeys(given) | dict(zip(operands, tensors, strict=True))
        return _launch(
            **by_name, is_causal=is_causal, scale=scale, softcap=softcap, heads_first=heads_first, config=config
        )

    result = inline(graph, before, torch.func.functionalize(launch), list(operands.values()))
    _fix_strides(graph)
    return result


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bounds: Tensor | None,
    sink: Tensor | None,
    *,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    heads_first: bool,
    config: KernelConfig,
) -> Tensor:
    expanded = None if mask is None else mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    tensors = allocate(q, k, v, expanded, bounds, heads_first, config, sink=sink)
    for call in calls_of(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config):
        # The strides are the expanded mask's; the tensor is the mask, which Inductor has no reason to expand.
        arguments = {name: mask if value is expanded else value for name, value in call.arguments.items()}
        _trace(replace(call, arguments=arguments, constants=_with_double_scalars(call.constants)))
    return tensors.out


def _with_double_scalars(constants: dict[str, Any]) -> dict[str, Any]:
    """Inductor may hand Python's floats on as what they are, doubles."""
    return constants | {"DOUBLE_SCALARS": True} if "DOUBLE_SCALARS" in constants else constants


def _trace(call: KernelCall) -> None:
    """The launch as a node of the graph being traced. Options are what an autotuner with one choice chooses."""
    import triton
    from torch.library import wrap_triton

    options = triton.Config({}, num_warps=call.options["num_warps"], num_stages=call.options["num_stages"])
    wrap_triton(triton.autotune([options], key=[])(call.kernel))[call.grid](**call.arguments, **call.constants)


def _fix_strides(graph: Graph) -> None:
    """Have Inductor keep the strides that the launches were traced with, and not only their order: they are among the
    kernels' arguments."""
    for node in graph.find_nodes(op="call_function", target=triton_kernel_wrapper_functional):
        if "eager_input_vals" not in node.meta:
            node.meta["eager_input_vals"] = map_arg((node.args, node.kwargs), lambda operand: operand.meta["val"])
