"""Kernels that only read: a ceiling that leaves out a word is none. Run as a script, it compiles for sm_90."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from prefetch_compiler.bench.ceiling import LaunchShape
from prefetch_compiler.bench.kernel.readers import (
    FIRST_SHAPES,
    MORE_SHAPES,
    Reader,
    ReaderShape,
    as_words,
    pair_words,
    readers,
)
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES, interpreting

SHAPES = (*FIRST_SHAPES, *MORE_SHAPES)
# Not a whole number of any block, and more blocks than the interpreter's two SMs have programs.
WORDS = 2 * 16 * 512 + 16384 + 160
H200 = REFERENCE_DEVICES[90]


def caches(words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of more words than are read, all 0."""
    k, v = (torch.zeros(1, 2, words + 64, 1, dtype=torch.int32) for _ in range(2))
    return k, v


@pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("block", sorted({shape.launch.block_words for shape in SHAPES}))
@pytest.mark.parametrize("programs_per_sm", [0, 1])
def test_every_word_is_read_and_none_beyond(block: int, programs_per_sm: int) -> None:
    shape = ReaderShape(LaunchShape(block, 4, programs_per_sm))
    k, v = caches(WORDS)
    reader = Reader(shape, WORDS * 8, INTERPRETER)
    for cache in (k, v):
        as_words(cache)[WORDS:] = 1 << 30
    assert not reader(k, k, v).any()
    for cache in (k, v):
        for place in (0, block - 1, block, WORDS // 2, WORDS - block, WORDS - 1):
            as_words(cache)[place] = 1
            assert reader(k, k, v).any(), place
            as_words(cache)[place] = 0


def test_bytes_are_those_of_the_case() -> None:
    assert pair_words(1 << 30) * 8 == 1 << 30
    assert (1 << 30) - 256 <= pair_words((1 << 30) - 8) * 8 <= (1 << 30) - 8


def test_what_is_smaller_than_a_block_is_read_in_smaller_ones() -> None:
    blocks = {reader.shape.launch.block_words for reader in readers(SHAPES, 8 * 2048, H200)}
    assert blocks == {512, 1024, 2048}
    assert readers(SHAPES, 1024, H200) == []


@pytest.mark.parametrize("transposed", [False, True])
def test_any_layout_is_its_memory(transposed: bool) -> None:
    stored = torch.arange(2 * 3 * 4 * 8, dtype=torch.float16).view(2, 3, 4, 8)
    seen = as_words(stored.transpose(1, 2) if transposed else stored)
    assert torch.equal(seen, stored.flatten().view(torch.int32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_program_of_an_sm_finds_room(shape: ReaderShape) -> None:
    launch = shape.launch
    kept_bytes = 2 * launch.block_words * 4 * (shape.stages - 1)
    programs = launch.programs_per_sm or 1
    assert programs * kept_bytes <= H200.shared_memory_bytes
    assert programs * launch.num_warps <= 64
    # Blocks on their way through registers: an SM has 64 Ki of them.
    assert shape.stages > 1 or programs * 2 * launch.block_words <= 64 * 1024


def compile_all() -> dict[str, dict[str, int]]:
    """What the three ways to a register look like in PTX for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from prefetch_compiler.bench.kernel.readers import read_pair_kernel

    signature = {"first_ptr": "*i32", "second_ptr": "*i32", "sink_ptr": "*i32", "blocks": "i32", "words": "i32"}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(3)}
    found = {}
    for shape in SHAPES:
        constants = {
            "BLOCK_WORDS": shape.launch.block_words, "STAGES": shape.stages,
            "CACHE": ".cg" if shape.past_l1 else "", "LAUNCH_OVERLAP": True,
        }  # fmt: skip
        source = ASTSource(read_pair_kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, aligned)
        options = {"num_warps": shape.launch.num_warps, "launch_pdl": True}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        ptx = compiled.asm["ptx"]
        found[str(shape)] = {
            "cp.async": ptx.count("cp.async.cg.shared.global"),
            "cg": ptx.count("ld.global.cg.v4"),
            "v4": ptx.count(".v4.b32"),
            "loads": ptx.count("ld.global"),
            "wait": ptx.count("griddepcontrol.wait"),
            "shared": compiled.metadata.shared,
        }
    return found


@pytest.fixture(scope="module")
def compiled(printed_apart: Callable[[str, float], Any]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = printed_apart(__file__, 600)
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_shape_goes_the_way_that_it_names(shape: ReaderShape, compiled: dict[str, dict[str, int]]) -> None:
    code = compiled[str(shape)]
    assert code["wait"] == 1
    if shape.stages > 1:
        assert code["cp.async"] > 0
        assert code["loads"] == 0
        assert code["shared"] * max(1, shape.launch.programs_per_sm) <= H200.shared_memory_bytes
    else:
        assert code["cp.async"] == 0
        assert code["v4"] >= code["loads"] == 2 * shape.launch.block_words // (32 * shape.launch.num_warps * 4)
        assert code["cg"] == (code["loads"] if shape.past_l1 else 0)


if __name__ == "__main__":
    json.dump(compile_all(), sys.stdout)
