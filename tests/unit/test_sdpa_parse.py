"""Which SDPA calls of a Dynamo graph are decode attention that the templates serve, and the reason where one is not."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional

from prefetch_compiler.errors import Refused
from prefetch_compiler.recognize.sdpa import NotDecode, is_sdpa, parse

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Shape = tuple[int, ...]


def _placeholder(graph: Graph, mode: FakeTensorMode, name: str, tensor: torch.Tensor) -> Node:
    node = graph.placeholder(name)
    node.meta["example_value"] = mode.from_tensor(tensor)
    return node


def sdpa_node(
    q: Shape = (2, 4, 1, 16),
    k: Shape = (2, 4, 20, 16),
    v: Shape | None = None,
    mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    requires_grad: str = "",
    **arguments: Any,
) -> Node:
    """An SDPA node as Dynamo leaves it, on operands of the given shapes."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    graph = Graph()
    shapes = {"query": q, "key": k, "value": k if v is None else v}
    dtypes = {"query": dtype, "key": kv_dtype or dtype, "value": kv_dtype or dtype}
    for name, shape in shapes.items():
        tensor = torch.empty(shape, dtype=dtypes[name], device=DEVICE, requires_grad=name == requires_grad)
        arguments[name] = _placeholder(graph, mode, name, tensor)
    if mask is not None:
        arguments["attn_mask"] = _placeholder(graph, mode, "attn_mask", mask.to(DEVICE))
    node = graph.call_function(functional.scaled_dot_product_attention, (), arguments)
    if out is None:
        out = torch.empty((*q[:-1], shapes["value"][-1]), dtype=dtype, device=DEVICE)
    node.meta["example_value"] = mode.from_tensor(out)
    return node


# What a reason's last part, after the colon, may begin with: what is to be done.
IMPERATIVES = (
    "build", "call", "decode", "expand", "load", "make", "move", "pad", "pass", "repeat", "reshape", "run",
)  # fmt: skip


def assert_names_a_fix(reason: str) -> None:
    what_is_wrong, _, fix = reason.rpartition(": ")
    assert what_is_wrong, reason
    assert fix.startswith(IMPERATIVES), reason


SERVED: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"k": (2, 2, 20, 16), "enable_gqa": True},
    "one_kv_head": {"k": (2, 1, 20, 16)},
    "batch_of_one_cache": {"k": (1, 4, 20, 16)},
    "sixteen_queries": {"q": (2, 4, 16, 16)},
    "half": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
    "widest_heads": {"q": (2, 4, 1, 256), "k": (2, 4, 20, 256)},
    "narrowest_heads": {"q": (2, 4, 1, 8), "k": (2, 4, 20, 8)},
    "other_value_dim": {"v": (2, 4, 20, 24)},
    "no_dropout": {"dropout_p": 0},
    "mask_of_two_dimensions": {"mask": torch.ones(1, 20, dtype=torch.bool)},
    "mask_in_float32": {"mask": torch.zeros(2, 1, 1, 20), "dtype": torch.float16},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "three_dimensions": ({"q": (4, 1, 16), "k": (4, 20, 16)}, "query has 3 dimensions"),
    "float64": ({"dtype": torch.float64}, "dtype torch.float64 is not supported"),
    "mixed_dtypes": ({"kv_dtype": torch.float16}, "mixed dtypes"),
    "autocast": ({"out": torch.empty(2, 4, 1, 16, dtype=torch.bfloat16)}, "autocast changes torch.float32"),
    "head_dim_not_multiple": ({"q": (2, 4, 1, 20), "k": (2, 4, 20, 20)}, "head_dim is 20"),
    "head_dim_too_large": ({"q": (2, 4, 1, 264), "k": (2, 4, 20, 264)}, "head_dim is 264"),
    "value_dim_not_multiple": ({"v": (2, 4, 20, 12)}, "value head_dim is 12"),
    "key_dim": ({"q": (2, 4, 1, 24)}, "query head_dim 24 differs from key head_dim 16"),
    "uneven_heads": ({"q": (2, 6, 1, 16), "enable_gqa": True}, "6 query heads do not share 4 KV heads evenly"),
    "grouped_without_gqa": ({"q": (2, 8, 1, 16)}, "8 query heads do not share 4 KV heads evenly"),
    "fewer_query_heads": ({"q": (2, 1, 1, 16)}, "1 query heads do not share 4 KV heads evenly"),
    "value_heads": ({"v": (2, 2, 20, 16)}, "key has 4 heads and value 2"),
    "value_batch": ({"v": (1, 4, 20, 16)}, "key and value differ in batch"),
    "query_broadcast": ({"q": (1, 4, 1, 16)}, "the query is broadcast over the batch"),
    "no_keys": ({"k": (2, 4, 0, 16)}, "there are no keys"),
    "causal_and_mask": ({"mask": torch.ones(1, 20), "is_causal": True}, "is_causal=True together with attn_mask"),
    "mask_shape": ({"mask": torch.ones(1, 19, dtype=torch.bool)}, "does not broadcast to"),
    "mask_of_five_dimensions": ({"mask": torch.ones(1, 1, 1, 1, 20, dtype=torch.bool)}, "attn_mask has 5 dimensions"),
    "mask_dtype": ({"mask": torch.ones(1, 20, dtype=torch.float64)}, "mask dtype torch.float64 is not supported"),
    "scale": ({"scale": torch.tensor(0.5)}, "scale is not a constant"),
    "causality": ({"is_causal": 1}, "is_causal is not a constant"),
    "output_strides": (
        {"out": torch.empty(16, 2, 4, 3).permute(1, 2, 3, 0), "q": (2, 4, 3, 16)},
        "neither usual memory order",
    ),
}

NOT_DECODE: dict[str, tuple[dict[str, Any], str]] = {
    "prefill": ({"q": (2, 4, 17, 16)}, "prefill: 17 queries, more than 16"),
    "dropout": ({"dropout_p": 0.1}, "dropout_p is 0.1"),
    "query_gradient": ({"requires_grad": "query"}, "gradients are on"),
    "value_gradient": ({"requires_grad": "value"}, "gradients are on"),
}


@pytest.mark.parametrize("arguments", SERVED.values(), ids=SERVED)
def test_decode_attention_is_served(arguments: dict[str, Any]) -> None:
    node = sdpa_node(**arguments)
    assert is_sdpa(node)
    call = parse(node)
    assert call.q is node.kwargs["query"]
    assert call.k is node.kwargs["key"]
    assert call.v is node.kwargs["value"]
    assert call.mask is node.kwargs.get("attn_mask")


@pytest.mark.parametrize(("arguments", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_templates_cannot_serve_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse(sdpa_node(**arguments))
    assert reason in refusal.value.reason
    assert_names_a_fix(refusal.value.reason)
    assert not isinstance(refusal.value, NotDecode)


@pytest.mark.parametrize(("arguments", "reason"), NOT_DECODE.values(), ids=NOT_DECODE)
def test_what_is_not_decode_is_left_without_complaint(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotDecode) as refusal:
        parse(sdpa_node(**arguments))
    assert reason in refusal.value.reason
    assert_names_a_fix(refusal.value.reason)


def test_the_ways_out_that_everybody_asks_for() -> None:
    for arguments, fix in (
        ({"dropout_p": 0.1}, "call model.eval()"),
        ({"requires_grad": "query"}, "run under torch.no_grad()"),
        ({"k": (2, 4, 0, 16)}, "pass cache_implementation='static'"),
        ({"q": (2, 8, 1, 16)}, "pass enable_gqa=True"),
    ):
        with pytest.raises(Refused) as refusal:
            parse(sdpa_node(**arguments))
        assert fix in refusal.value.reason


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU needs no interpreter")
def test_a_cpu_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(Refused, match="set TRITON_INTERPRET=1"):
        parse(sdpa_node())


def test_arguments_by_position_and_by_name_read_alike() -> None:
    named = sdpa_node(mask=torch.ones(1, 20, dtype=torch.bool), dropout_p=0.0, is_causal=False, scale=3)
    with named.graph.inserting_after(named):
        order = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        positional = named.graph.call_function(
            functional.scaled_dot_product_attention, tuple(named.kwargs[name] for name in order), {"scale": 3}
        )
    positional.meta = named.meta
    assert parse(positional) == parse(named)
    assert parse(named).scale == 3.0
    assert isinstance(parse(named).scale, float)


@pytest.mark.parametrize(
    ("order", "heads_first"), [((0, 1, 2, 3), True), ((0, 2, 1, 3), False)], ids=["heads_first", "queries_first"]
)
def test_the_outputs_memory_order_is_kept(order: tuple[int, ...], heads_first: bool) -> None:
    shape = (2, 4, 3, 16)
    out = torch.empty([shape[d] for d in order], device=DEVICE).permute(order)
    assert parse(sdpa_node(q=shape, out=out)).heads_first is heads_first


def _node_with_symbolic_queries(q_len: int) -> tuple[Node, ShapeEnv]:
    shape_env = ShapeEnv()
    mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
    node = sdpa_node(q=(2, 4, q_len, 16))
    sizes: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(
        dynamic_sizes=[DimDynamic.STATIC, DimDynamic.STATIC, DimDynamic.DYNAMIC, DimDynamic.STATIC]
    )
    query = node.kwargs["query"]
    assert isinstance(query, Node)
    symbolic = mode.from_tensor(torch.empty(2, 4, q_len, 16, device=DEVICE), symbolic_context=sizes)
    query.meta["example_value"] = symbolic
    node.meta["example_value"] = torch.empty_like(symbolic)
    return node, shape_env


def test_a_symbolic_prefill_length_gets_no_guard() -> None:
    node, shape_env = _node_with_symbolic_queries(40)
    guards = len(shape_env.guards)
    with pytest.raises(NotDecode, match="prefill"):
        parse(node)
    assert len(shape_env.guards) == guards


def test_a_symbolic_decode_length_is_guarded() -> None:
    node, shape_env = _node_with_symbolic_queries(5)
    parse(node)
    assert any("16" in str(guard.expr) for guard in shape_env.guards)


def test_a_symbolic_scale_is_a_constant_only_where_its_value_is_known() -> None:
    shapes = ShapeEnv()
    node = sdpa_node()
    scale = node.graph.placeholder("scale")
    node.kwargs = {**node.kwargs, "scale": scale}
    scale.meta["example_value"] = torch.SymFloat(shapes.create_unbacked_symfloat().node)
    with pytest.raises(Refused, match="scale is not a constant"):
        parse(node)
    scale.meta["example_value"] = torch.SymFloat(SymNode(sympy.Float(0.25), shapes, float, 0.25))
    assert parse(node).scale == 0.25
