"""What the kernel rebuilt from arXiv 2504.06319 compiles to for sm_90. Run as a script, it compiles: Triton must not
have been imported under TRITON_INTERPRET for that."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from prefetch_compiler.bench.paper.kernel import WARPS, example_tensors, paper_call
from prefetch_compiler.bench.paper.variant import PREFETCH_OF, Column
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.lower.precompile import source_of, target_of

BULK_PREFETCH = "cp.async.bulk.prefetch.L2.global"
HEAD_DIM = 128
# One of K and one of V, in the loop over blocks and in the one before it, for what is nearer than the depth.
EXPECTED = {column: 0 if column is Column.NONE else 4 for column in PREFETCH_OF}
Assembly = dict[str, dict[str, str]]


def compile_all() -> Assembly:
    """Intermediate code by variant and warps."""
    import triton

    target = target_of(REFERENCE_DEVICES[90])
    found = {}
    for column, prefetch in PREFETCH_OF.items():
        for warps in WARPS:
            call = paper_call(example_tensors(HEAD_DIM), prefetch, warps, 0.1)
            compiled = triton.compile(source_of(call), target=target, options=call.options)
            found[f"{column.value}, {warps}"] = {form: compiled.asm[form] for form in ("ptx", "ttgir")}
    return found


@pytest.fixture(scope="module")
def assembly(printed_apart: Callable[[str, float], Any]) -> Assembly:
    found: Assembly = printed_apart(__file__, 300)
    return found


@pytest.mark.parametrize("warps", WARPS)
@pytest.mark.parametrize("column", EXPECTED, ids=lambda column: column.name)
def test_each_variant_has_its_prefetches_and_no_other(assembly: Assembly, column: Column, warps: int) -> None:
    ptx = assembly[f"{column.value}, {warps}"]["ptx"]
    assert ptx.count(BULK_PREFETCH) == EXPECTED[column]
    assert len(re.findall(r"@elected\s+" + re.escape(BULK_PREFETCH), ptx)) == EXPECTED[column]
    assert "prefetch.global" not in ptx


@pytest.mark.parametrize("warps", WARPS)
@pytest.mark.parametrize("column", EXPECTED, ids=lambda column: column.name)
def test_nothing_is_software_pipelined(assembly: Assembly, column: Column, warps: int) -> None:
    """Tiles go to registers, and nothing in the loop waits for another warp."""
    code = assembly[f"{column.value}, {warps}"]
    assert "async_copy" not in code["ttgir"] and "local_alloc" not in code["ttgir"]
    loop = code["ttgir"].rsplit("scf.for", 1)[1].split("scf.yield", 1)[0]
    assert "convert_layout" not in loop
    assert "cp.async.cg" not in code["ptx"] and "cp.async.ca" not in code["ptx"]


@pytest.mark.parametrize("warps", WARPS)
def test_all_variants_that_prefetch_are_one_binary(assembly: Assembly, warps: int) -> None:
    """So that what they differ by is owed to the prefetches, and not to the code around them."""
    codes = {assembly[f"{column.value}, {warps}"]["ptx"] for column in PREFETCH_OF if column is not Column.NONE}
    assert len(codes) == 1


@pytest.mark.parametrize("warps", WARPS)
def test_a_tile_is_loaded_16_bytes_at_a_time(assembly: Assembly, warps: int) -> None:
    ptx = assembly[f"{Column.NONE.value}, {warps}"]["ptx"]
    each = 16 * HEAD_DIM * 2 // (warps * 32 * 16)
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == 2 * each


if __name__ == "__main__":
    json.dump(compile_all(), sys.stdout)
