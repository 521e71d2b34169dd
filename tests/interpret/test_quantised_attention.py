"""The operator over a quantised cache as models call it: compiled, eagerly, wrongly, and where no kernel serves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prefetch_compiler import (
    DecodeOptions,
    kvprefetch,
    mask_bounds,
    quantise,
    quantise_affine,
    quantised_decode_attention,
)
from prefetch_compiler.error_bound import yardstick
from prefetch_compiler.errors import InvalidAttentionInputError, KernelLaunchError, SiteNotLoweredError
from prefetch_compiler.lower import call_op
from prefetch_compiler.quantisation import dequantise
from prefetch_compiler.select.heuristic import FIXED_CHUNK_KEYS

STRICT = DecodeOptions(strict=True)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, HEADS, KV_HEADS, KEYS, DIM = 2, 4, 2, 48, 32
HELD = 29


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def arguments(dtype: torch.dtype = torch.bfloat16, kv_dtype: torch.dtype = torch.float8_e4m3fn) -> dict[str, Any]:
    key, key_scale = quantise(normal(BATCH, KV_HEADS, KEYS, DIM, seed=1), kv_dtype, "token")
    value, value_scale = quantise(normal(BATCH, KV_HEADS, KEYS, DIM, seed=2), kv_dtype, "head")
    mask = (torch.arange(KEYS, device=DEVICE) < HELD)[None, None, None]
    return {
        "query": normal(BATCH, HEADS, 1, DIM).to(dtype), "key": key, "value": value, "key_scale": key_scale,
        "value_scale": value_scale, "attn_mask": mask,
    }  # fmt: skip


class Problem:
    """What the bound is computed of."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.q = given["query"]
        self.k = dequantise(given["key"], given["key_scale"], torch.float64)
        self.v = dequantise(given["value"], given["value_scale"], torch.float64)
        self.mask, self.is_causal, self.scale = given["attn_mask"], False, DIM**-0.5
        self.softcap, self.sink = given.get("softcap"), given.get("sink")


class Layer(torch.nn.Module):
    """A step of a hand-written model: it writes a token's K and V into its quantised cache, and attends."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        for name in ("key", "value", "key_scale", "value_scale"):
            self.register_buffer(name, given[name].clone())

    def forward(self, query: Tensor, written: Tensor, position: Tensor) -> Tensor:
        numbers, scale = quantise(written, torch.float8_e4m3fn, "token")
        assert scale is not None
        for cache in (self.key, self.value):
            cache.view(torch.uint8).index_copy_(2, position, numbers.view(torch.uint8))
        self.key_scale.index_copy_(2, position, scale)
        mask = torch.arange(KEYS, device=query.device)[None, None, None] <= position
        out = quantised_decode_attention(query, self.key, self.value, self.key_scale, self.value_scale, mask)
        return out.transpose(1, 2).reshape(BATCH, 1, HEADS * DIM) * 2


@pytest.mark.parametrize("backend", ["inductor", kvprefetch], ids=["inductor", "kvprefetch"])
def test_a_compiled_model_is_one_graph_and_steps_like_the_model_itself(backend: Any) -> None:
    given = arguments()
    eager, compiled = Layer(given), Layer(given)
    step = torch.compile(compiled, backend=backend, fullgraph=True)
    for number in range(3):
        query = normal(BATCH, HEADS, 1, DIM, seed=number).bfloat16()
        inputs = query, normal(BATCH, KV_HEADS, 1, DIM, seed=9 + number), torch.tensor([HELD + number], device=DEVICE)
        assert torch.equal(step(*inputs), eager(*inputs))
    for mine, theirs in zip(compiled.buffers(), eager.buffers(), strict=True):
        assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))


def test_the_operator_keeps_its_promises() -> None:
    given = arguments(kv_dtype=torch.int8)  # of which alone opcheck can compare tensors on a CPU
    bounds = mask_bounds(given["attn_mask"], KEYS)
    operands = tuple(given[name] for name in ("query", "key", "value", "key_scale", "value_scale", "attn_mask"))
    torch.library.opcheck(
        call_op.CALLED_ATTENTION,
        (
            *operands,
            bounds,
            None,
            None,
            None,
            False,
            DIM**-0.5,
            None,
            "quantised_decode_attention",
            None,
            None,
            "",
            False,
            False,
            False,
            [],
        ),
        test_utils=("test_schema", "test_faketensor"),
    )


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a flat query": ({"query": torch.zeros(BATCH, DIM)}, "query is (2, 32); it must be of four dimensions"),
    "integer queries": ({"query": torch.zeros(BATCH, HEADS, 1, DIM, dtype=torch.int8)}, "query is torch.int8"),
    "a cache that is not quantised": ({"key": torch.zeros(BATCH, KV_HEADS, KEYS, DIM)}, "key is torch.float32"),
    "caches of two formats": (
        {"value": torch.zeros(BATCH, KV_HEADS, KEYS, DIM, dtype=torch.int8)},
        "value is torch.int8; it must be of the dtype of key, torch.float8_e4m3fn",
    ),
    "another batch": ({"query": torch.zeros(3, HEADS, 1, DIM)}, "it must be of the query's batch, 3"),
    "another head_dim": ({"query": torch.zeros(BATCH, HEADS, 1, 64)}, "it must be of the query's head_dim, 64"),
    "heads that do not divide": ({"query": torch.zeros(BATCH, 3, 1, DIM)}, "a number of heads that divides"),
    "a shorter value": (
        {"value": torch.zeros(BATCH, KV_HEADS, 8, DIM, dtype=torch.float8_e4m3fn)}, "of the (2, 2, 48) of key",
    ),
    "a scale with columns": ({"key_scale": torch.ones(BATCH, KV_HEADS, KEYS, 3)}, "() or (1|2, 1|2, 1|48)"),
    "a scale of other tokens": ({"value_scale": torch.ones(1, 1, 7)}, "value_scale is (1, 1, 7)"),
    "an integer scale": ({"value_scale": torch.ones((), dtype=torch.int32)}, "value_scale is torch.int32"),
    "a zero of another dtype": ({"key_zero": torch.zeros((), dtype=torch.int64)}, "key_zero is torch.int64; it must"),
    "a zero with columns": ({"value_zero": torch.zeros(BATCH, 1, 1, 2 * DIM)}, "() or (1|2, 1|2, 1|48)"),
    "a minimum of other tokens": ({"value_minimum": torch.ones(1, 1, 7)}, "value_minimum is (1, 1, 7)"),
    "a zero and a minimum": (
        {"key_zero": torch.zeros(()), "key_minimum": torch.zeros(())},
        "key_minimum is given; it must be None where there is a key_zero",
    ),
    "groups of two sizes": (
        {"key_scale": torch.ones(BATCH, 1, KEYS, 4), "key_zero": torch.ones(BATCH, 1, KEYS, 2)},
        "key_zero is (2, 1, 48, 2); it must be of groups like those of the scale, (2, 1, 48, 4)",
    ),
    "another packing": ({"packing": "int4"}, "packing is int4; it must be one of int4_halves, int4_interleaved"),
    "packed floats": ({"packing": "int4_halves"}, "key is torch.float8_e4m3fn; it must be torch.uint8 or torch.int8"),
    "an integer mask": ({"attn_mask": torch.ones(KEYS, dtype=torch.int32)}, "attn_mask is torch.int32"),
    "a mask of other keys": ({"attn_mask": torch.ones(7, dtype=torch.bool)}, "broadcastable to (2, 4, 1, 48)"),
    "a mask and is_causal": ({"is_causal": True}, "is_causal is True; it must be False where there is a mask"),
    "lengths and a mask": (
        {"lengths": torch.ones(BATCH, dtype=torch.int32)}, "lengths is given; it must be None where there is a mask",
    ),
    "bounds and no mask": (
        {"attn_mask": None, "bounds": torch.zeros(1, 4, dtype=torch.int32)}, "bounds is given; it must be None without",
    ),
    "bounds of another dtype": ({"bounds": torch.zeros(1, 4)}, "bounds is torch.float32; it must be int32"),
    "bounds of another batch": ({"bounds": torch.zeros(5, 4, dtype=torch.int32)}, "it must be of shape (1|2, 4)"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_arguments_that_do_not_fit_are_named(wrong: str) -> None:
    changed, message = WRONG[wrong]
    moved = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in changed.items()}
    with pytest.raises(InvalidAttentionInputError) as caught:
        quantised_decode_attention(**(arguments() | moved))
    assert message in str(caught.value)


def test_compiling_a_wrong_call_says_what_is_wrong() -> None:
    given = arguments() | {"key_scale": torch.ones(1, 1, 7, device=DEVICE)}
    compiled = torch.compile(quantised_decode_attention, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"key_scale is \(1, 1, 7\); it must be of shape"):
        compiled(**given)


def test_float32_queries_are_dequantised_for_and_refused_when_strict() -> None:
    given = arguments(torch.float32)
    out = quantised_decode_attention(**given)
    assert yardstick(Problem(given)).share(out) <= 1
    with pytest.raises(SiteNotLoweredError, match=r"queries of torch\.float32"):
        quantised_decode_attention(**given, options=STRICT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["kernel", "dequantised"])
def test_soft_caps_and_sinks(dtype: torch.dtype) -> None:
    given = arguments(dtype) | {"softcap": 1.5, "sink": normal(HEADS, seed=3) + 3}
    out = quantised_decode_attention(**given, options=DecodeOptions(strict=dtype is torch.bfloat16))
    assert yardstick(Problem(given)).share(out) <= 1
    assert yardstick(Problem(given | {"softcap": None})).share(out) > 1
    assert yardstick(Problem(given | {"sink": None})).share(out) > 1


@pytest.mark.parametrize("minima", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["kernel", "dequantised"])
def test_zero_points_and_minima(dtype: torch.dtype, minima: bool) -> None:
    given = arguments(dtype)
    problem = Problem(given)
    for side in ("key", "value"):
        x = 1.5 + normal(BATCH, KV_HEADS, KEYS, DIM, seed=len(side))
        given[side], given[f"{side}_scale"], zero = quantise_affine(x, torch.uint8, "token", minima=minima)
        zero[:, :, HELD:] = float("nan")
        exact = dequantise(given[side], given[f"{side}_scale"], torch.float64, zero, minima=minima)
        setattr(problem, side[0], exact.nan_to_num())
        given[f"{side}_minimum" if minima else f"{side}_zero"] = zero
    out = quantised_decode_attention(**given, options=DecodeOptions(strict=dtype is torch.bfloat16))
    assert yardstick(problem).share(out) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["kernel", "dequantised"])
def test_groups_of_columns_and_numbers_of_four_bits(dtype: torch.dtype) -> None:
    """As KIVI has them: scales and minima of K's channels over sixteen tokens, and of a token's halves of V."""
    given = arguments(dtype)
    problem = Problem(given)
    for side, group in (("key", (16, 1)), ("value", (1, DIM // 2))):
        x = 1.5 + normal(BATCH, KV_HEADS, KEYS, DIM, seed=len(side))
        quantised = quantise_affine(x, torch.uint8, "group", minima=True, group=group, packing="uint4_interleaved")
        given[side], given[f"{side}_scale"], given[f"{side}_minimum"] = quantised
        numbers, scale, zero = quantised
        exact = dequantise(numbers, scale, torch.float64, zero, minima=True, packing="uint4_interleaved")
        setattr(problem, side[0], exact)
    options = DecodeOptions(strict=dtype is torch.bfloat16)
    out = quantised_decode_attention(**given, packing="uint4_interleaved", options=options)
    assert yardstick(problem).share(out) <= 1


def test_scales_of_four_dimensions_may_say_no_more_than_those_of_three() -> None:
    given = arguments()
    out = quantised_decode_attention(**given)
    for name in ("key_scale", "value_scale"):
        given[name] = given[name][..., None]
    assert torch.equal(quantised_decode_attention(**given), out)


def test_what_is_dequantised_reads_nothing_beyond_the_bounds() -> None:
    given = arguments(torch.float32)
    for name in ("key", "value"):
        given[name].view(torch.uint8)[:, :, HELD:] = 0x7F
    given["key_scale"][:, :, HELD:] = float("nan")
    assert quantised_decode_attention(**given).isfinite().all()


def test_a_kernel_that_fails_leaves_the_attention_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Tensor:
        raise ZeroDivisionError("no kernel today")

    given = arguments()
    monkeypatch.setattr(call_op, "_failed_configs", set())
    monkeypatch.setattr(call_op, "launch_decode", fail)
    with pytest.raises(KernelLaunchError, match="no kernel today"):
        quantised_decode_attention(**given, options=STRICT)
    out = quantised_decode_attention(**given)
    # Dequantised to bfloat16, which is what the bound measures, and then SDPA's own roundings of that dtype.
    assert yardstick(Problem(given)).share(out) <= 1


def test_columns_that_are_not_adjacent_are_refused() -> None:
    given = arguments()
    given["key"] = given["key"].view(torch.uint8).transpose(2, 3).contiguous().transpose(2, 3).view(torch.float8_e4m3fn)
    with pytest.raises(SiteNotLoweredError, match="the last stride of key is 48"):
        quantised_decode_attention(**given, options=STRICT)


def test_deterministic_gives_each_sequence_the_same_bits_alone() -> None:
    """Of three sequences whose lengths differ, in caches of three chunks."""
    capacity = 2 * FIXED_CHUNK_KEYS + 100
    query = normal(3, 2, 1, DIM).to(torch.bfloat16)
    key, key_scale = quantise(normal(3, 1, capacity, DIM, seed=1), torch.int8, "token")
    value, value_scale = quantise(normal(3, 1, capacity, DIM, seed=2), torch.int8, "token")
    held = torch.tensor([capacity, 37, FIXED_CHUNK_KEYS + 1], device=DEVICE)
    mask = (torch.arange(capacity, device=DEVICE) < held[:, None])[:, None, None, :]
    operands = [query, key, value, key_scale, value_scale, mask]

    def attend(*given: Tensor | None) -> Tensor:
        return quantised_decode_attention(*given, options=DecodeOptions(strict=True, deterministic=True))  # type: ignore[arg-type]

    together = attend(*operands)
    for one in range(3):
        alone = attend(*(operand[one : one + 1].clone() for operand in operands if operand is not None))
        assert torch.equal(alone[0], together[one])


def test_deterministic_is_asked_of_the_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def select(*given: Any, deterministic: bool = False, **options: Any) -> Any:
        asked.append(deterministic)
        return right(*given, deterministic=deterministic, **options)

    right = call_op.select
    monkeypatch.setattr(call_op, "select", select)
    call_op._selected.cache_clear()
    for deterministic in (False, True, False):
        quantised_decode_attention(**arguments(), options=DecodeOptions(strict=True, deterministic=deterministic))
    assert asked == [False, True]
