"""Scores in float32 are sums of several chains in what Triton compiles too, which Triton's interpreter does not show.
Run as a script, it compiles: Triton must not have been imported under TRITON_INTERPRET for that."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower.precompile import example_tensors, kernel_calls, source_of, target_of
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.heuristic import choose

# Chains of scores by head_dim: of 32 columns, four at most. One more product is that of probabilities and values.
CHAINS = {32: 1, 64: 2, 128: 4, 256: 4}
_PRODUCT = re.compile(r"tt\.dot\s+%[\w#]+,\s*%[\w#]+,\s*%(\w+)")
_CONSTANT = re.compile(r"^cst(_\d+)?$")
# Of rows in float32.
ORDERS = (OperandOrder.QK, OperandOrder.KQ)


def compile_all() -> dict[str, list[str]]:
    """What each product is added to, by its name in Triton's intermediate code, for each head_dim and operand order."""
    import triton

    device = REFERENCE_DEVICES[90]
    found = {}
    for dim in CHAINS:
        spec = parse_key(f"float32 8q/2kv d{dim} q1 b64 s1024 bhsd-tma bool").spec()
        for order in ORDERS:
            config = replace(choose(spec, device), operand_order=order)
            (call,) = kernel_calls(spec, config, example_tensors(spec, config, "meta"), device)
            compiled = triton.compile(source_of(call), target=target_of(device), options=call.options)
            found[f"{dim} {order.value}"] = _PRODUCT.findall(compiled.asm["ttgir"])
    return found


@pytest.fixture(scope="module")
def products(printed_apart: Callable[[str, float], Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = printed_apart(__file__, 300)
    return found


@pytest.mark.parametrize("dim", CHAINS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_chain_begins_with_nothing(products: dict[str, list[str]], dim: int, order: OperandOrder) -> None:
    *of_scores, of_values = products[f"{dim} {order.value}"]
    assert len(of_scores) == CHAINS[dim]
    assert all(_CONSTANT.match(begun_with) for begun_with in of_scores), of_scores
    assert not _CONSTANT.match(of_values)


@pytest.mark.parametrize(
    ("key", "refused"),
    [
        ("float32 8q/2kv d128 q1 b1 s1024 bhsd-tma bool", True),
        ("float32 8q/2kv d64 q1 b1 s1024 bhsd-tma none", True),
        ("float32 8q/2kv d40 q1 b1 s1024 bhsd-tma lengths", True),
        ("float32 8q/2kv d32 q1 b1 s1024 bhsd-tma bool", False),
        ("bfloat16 8q/2kv d128 q1 b1 s1024 bhsd-tma bool", False),
    ],
)
def test_rows_that_come_whole_are_refused_where_they_would_be_one_chain(key: str, refused: bool) -> None:
    config = KernelConfig(32, 1, 4, 2, load_path=LoadPath.TMA)
    reason = why_inadmissible(parse_key(key).spec(), config, REFERENCE_DEVICES[90])
    assert (reason is not None and "scores in float32 are sums of 32 columns" in reason) is refused


if __name__ == "__main__":
    print(json.dumps(compile_all()))
