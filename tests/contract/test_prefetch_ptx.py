"""Which PTX instruction each kind of prefetch becomes, for sm_90; ptxas refuses what the ISA has not. Run as a script,
it compiles: Triton must not have been imported under TRITON_INTERPRET for that."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prefetch_compiler.config import KernelConfig, PrefetchKind
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower.precompile import example_tensors, kernel_calls, source_of, target_of

# Rows that lie side by side, rows of another head between them, pages of less than a tile.
KEYS = {
    "adjacent": "bfloat16 32q/8kv d128 q1 b4 s1024 bhsd-tma none",
    "strided": "bfloat16 32q/8kv d128 q1 b4 s1024 bshd-tma none",
    "pages": "bfloat16 32q/8kv d128 q1 b4 s1024 bhsd-tma lengths page16",
}
INSTRUCTIONS = {
    PrefetchKind.LINE: "prefetch.global.L2",
    PrefetchKind.LINE_KEEP: "prefetch.global.L2::evict_last",
    PrefetchKind.BULK: "cp.async.bulk.prefetch.L2.global",
    PrefetchKind.BULK_KEEP: "cp.async.bulk.prefetch.L2.global.L2::cache_hint",
    PrefetchKind.BULK_PASS: "cp.async.bulk.prefetch.L2.global.L2::cache_hint",
}
POLICIES = {PrefetchKind.BULK_KEEP: "L2::evict_last", PrefetchKind.BULK_PASS: "L2::evict_first"}
_PREFETCH = re.compile(r"\b(prefetch\.global\S*|cp\.async\.bulk\.prefetch\S*)\s")
_POLICY = re.compile(r"\bcreatepolicy\.fractional\.(\S+?)\.b64\s")


def compile_all() -> dict[str, str]:
    """PTX by key and kind."""
    import triton

    device = REFERENCE_DEVICES[90]
    found = {}
    for name, text in KEYS.items():
        spec = parse_key(text).spec()
        for kind in PrefetchKind:
            config = replace(KernelConfig(32, 1, 4, 2), prefetch_depth=1, prefetch_kind=kind)
            (call,) = kernel_calls(spec, config, example_tensors(spec, config, "meta"), device)
            compiled = triton.compile(source_of(call), target=target_of(device), options=call.options)
            found[f"{name}, {kind.value}"] = compiled.asm["ptx"]
    return found


@pytest.fixture(scope="module")
def ptx(printed_apart: Callable[[str, float], Any]) -> dict[str, str]:
    found: dict[str, str] = printed_apart(__file__, 300)
    return found


@pytest.mark.parametrize("kind", PrefetchKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("name", KEYS)
def test_a_kind_is_its_instruction_and_no_other(ptx: dict[str, str], name: str, kind: PrefetchKind) -> None:
    code = ptx[f"{name}, {kind.value}"]
    assert set(_PREFETCH.findall(code)) == {INSTRUCTIONS[kind]}
    assert set(_POLICY.findall(code)) == ({POLICIES[kind]} if kind in POLICIES else set())


if __name__ == "__main__":
    json.dump(compile_all(), sys.stdout)
