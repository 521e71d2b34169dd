"""The kernel over K and V with a producer warp: every case within its error bound, reading nothing that no query sees.
On an sm_90 GPU as it is; elsewhere emulated, and compiled for sm_90."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, Partition
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES
from prefetch_compiler.lower.launch import allocate, calls_of
from prefetch_compiler.lower.precompile import CompiledKernel
from prefetch_compiler.recognize.bounds import mask_bounds
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.footprint import BARRIERS_BYTES, ring_registers, shared_memory_estimate_bytes

from .cases import Case, Operands, build, solve, spec_of
from .compile_worker import compile_elsewhere
from .covering import covering_rows
from .error_bounds import assert_within_bound
from .gluon_emulator import FOLDER, emulate, emulated
from .happens_before import RaceError
from .poison import uninitialised_is_nan

# Triton's interpreter, which merges what is emulated, warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

H200 = REFERENCE_DEVICES[90]
ON_SM90 = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
needs_sm90 = pytest.mark.skipif(torch.cuda.is_available() and not ON_SM90, reason="needs a GPU of sm_90")
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="merges in the interpreter: hide the GPU")
MODULE = "ring_decode"

PLAIN = Case(
    head_dim=64, value_dim=64, dtype=torch.bfloat16, block_kv=32, num_splits=3, num_stages=2, tiles=0,
    load_path=LoadPath.RING, partition=Partition.STREAMED, mask="ragged",
)  # fmt: skip
FACTORS = {
    "mask": ["none", "causal", "ragged", "left_padding", "hole", "per_row", "alibi"],
    "group": [1, 7, 23],
    "q_len": [1, 3],
    "extra_keys": [1, 31, 32, 33, 100, 230],
    "num_splits": [2, 3, 7],
    "num_stages": [2, 3],
    "block_kv": [32, 64],
    "dtype": [torch.float16, torch.bfloat16],
    "kv_layout": ["contiguous", "transposed"],
    "q_layout": ["contiguous", "transposed"],
    "softcap": [None, 2.0],
    "sink": [False, True],
    "batch": [1, 2, 5],
    "heads_first": [True, False],
}
CASES = [replace(PLAIN, **row) for row in covering_rows(FACTORS, seed=6)]
# As many tiles as make every barrier come round twice, across sequences of which each ends with a tile partly stale.
LONG = replace(PLAIN, batch=4, kv_heads=1, extra_keys=300, num_splits=2)


def config_of(case: Case) -> KernelConfig:
    return KernelConfig(
        case.block_kv, case.num_splits, 4, case.num_stages, load_path=LoadPath.RING, partition=Partition.STREAMED
    )


def solve_emulated(
    case: Case, seed: int, folder: Path = FOLDER, operands: Operands | None = None, lengths: torch.Tensor | None = None
) -> None:
    """The whole launch on the CPU, and a complaint if it is wrong."""
    given = build(case) if operands is None else operands
    config = config_of(case)
    assert why_inadmissible(spec_of(case, given), config, H200) is None
    heads, mask = case.group * case.kv_heads, None if lengths is not None else given.mask
    bounds = None if mask is None else mask_bounds(mask, case.capacity)
    expanded = None if mask is None else mask.expand(case.batch, heads, case.q_len, case.capacity)
    with uninitialised_is_nan():
        tensors = allocate(
            given.q, given.stale_k, given.stale_v, expanded, bounds, case.heads_first, config, sink=given.sink,
            lengths=lengths,
        )  # fmt: skip
        decode, *merge = calls_of(
            tensors, is_causal=given.is_causal, scale=given.scale, softcap=given.softcap, config=config
        )
        emulate(decode, emulated(MODULE, folder).ring_decode, seed)
        for call in merge:
            call.launch()
    assert_within_bound(tensors.out, given)


@needs_interpreter
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_algorithm(case: Case) -> None:
    solve_emulated(case, seed=1)


@needs_interpreter
@pytest.mark.parametrize("held", [(100, 1, 1, 1), (1, 0, 97, 0), (0, 0, 0, 0), (96,) * 4])
def test_lengths(held: tuple[int, ...]) -> None:
    """In place of a mask, and those of sequences that hold nothing among them."""
    case = replace(PLAIN, batch=4, extra_keys=100, spare_keys=0)
    mask = (torch.arange(case.capacity) < torch.tensor(held)[:, None])[:, None, None, :]
    stale = ~mask[:, 0, 0, :][:, None, :, None]
    given = build(case)
    given = replace(
        given, mask=mask, stale_k=given.k.masked_fill(stale, torch.nan), stale_v=given.v.masked_fill(stale, torch.nan)
    )
    solve_emulated(case, 3, operands=given, lengths=torch.tensor(held, dtype=torch.int32))


@needs_interpreter
@pytest.mark.parametrize("seed", range(4))
def test_no_order_of_warps_is_wrong(seed: int) -> None:
    solve_emulated(LONG, seed)


def changed_templates(folder: Path, right: str, wrong: str, place: int = 0, places: int = 1) -> None:
    """Copies into ``folder``, with ``wrong`` in one of the ``places`` of ``right``."""
    for path in FOLDER.glob("*.py"):
        source = path.read_text()
        if path.stem == MODULE:
            parts = source.split(right)
            assert len(parts) == places + 1
            source = right.join(parts[: place + 1]) + wrong + right.join(parts[place + 1 :])
        (folder / path.name).write_text(source)


@needs_interpreter
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("mbarrier.wait(bars.index(stage), phase)", "pass"),
        ("mbarrier.wait(bars.index(STAGES + stage), phase)", "pass"),
        ("clear_stale(values, end - key, KEYS, DIM)", "pass"),
        ("    stage = 0\n    phase = 1\n", "    stage = 0\n    phase = 0\n"),
        ("program + sequence) * rows", "sequence) * rows"),
        ("gl.maximum(begin - start, 0) * KEYS", "0"),
        ("first_program == last_program", "first_program <= last_program"),
        ("& (begin <= start)", "& (begin >= 0)"),
    ],
    ids=lambda text: text.split("\n")[0],
)
def test_what_is_not_waited_for_cleared_or_divided_is_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    """In some order of warps, of a few."""
    changed_templates(tmp_path, right, wrong)
    with pytest.raises(AssertionError):
        for seed in range(5):
            solve_emulated(replace(LONG, sink=True), seed, tmp_path)


_FENCE, _BARRIER = "fence_async_shared()\n", "tl.debug_barrier()\n"
_QUERIES_STORED = f"        {_FENCE}        {_BARRIER}        row_last"
_TILE_CLEARED = f"                {_FENCE}                {_BARRIER}"
_TILE_USED = f"            {_BARRIER}            mbarrier.arrive(bars.index(STAGES + stage)"
_UNFENCED = "product or copy of consumer without a fence races with write of consumer"


@needs_interpreter
@pytest.mark.parametrize(
    ("right", "without", "words"),
    [
        (_QUERIES_STORED, _FENCE, _UNFENCED),
        (_QUERIES_STORED, _BARRIER, _UNFENCED),
        (_TILE_CLEARED, _FENCE, _UNFENCED),
        (_TILE_CLEARED, _BARRIER, _UNFENCED),
        (_TILE_USED, _BARRIER, "copy . of producer races with product or copy of consumer"),
        ("mbarrier.wait(bars.index(stage), phase)", "", "consumer races with product or copy of copy"),
    ],
)
def test_what_orders_accesses_is_missed(right: str, without: str, words: str, tmp_path: Path) -> None:
    """In any order of warps."""
    changed_templates(tmp_path, right, right.replace(without, "pass\n") if without else "pass")
    for seed in range(2):
        with pytest.raises(RaceError, match=words):
            solve_emulated(LONG, seed, tmp_path)


GPU_CASES = [
    *CASES,
    *(replace(PLAIN, head_dim=dim, value_dim=dim, block_kv=block_kv, num_stages=stages, num_splits=splits, group=group,
              kv_heads=4, batch=batch, extra_keys=keys)
      for dim, block_kv, stages in ((64, 128, 3), (128, 64, 3), (128, 128, 2), (128, 32, 6), (256, 32, 4))
      for group, splits, batch, keys in ((4, 66, 32, 1111), (32, 33, 5, 5003), (1, 5, 1, 4096))),
]  # fmt: skip


@needs_sm90
@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=lambda case: case.name)
def test_the_kernel(case: Case) -> None:
    given = build(case)
    assert_within_bound(solve(case, given), given)


@needs_sm90
@pytest.mark.gpu
def test_overlapped_launches_in_a_row_give_the_same_bits() -> None:
    """Of one that began before its predecessor was done with the scratch memory they would differ."""
    case = replace(LONG, kv_heads=4, batch=8, extra_keys=2000, num_splits=33, launch_overlap=True)
    given = build(case)
    outs = [solve(case, given) for _ in range(20)]
    assert_within_bound(outs[-1], given)
    assert all(torch.equal(out, outs[0]) for out in outs)


# What the kernel's constants tell apart; all else is arguments.
COMPILED = {
    "mask": ["none", "causal", "prefix", "per_row", "alibi"],
    "dtype": [torch.float16, torch.bfloat16],
    "softcap": [None, 2.0],
    "shape": [(64, 128, 3), (64, 32, 6), (128, 64, 3), (128, 128, 3), (256, 32, 6), (256, 32, 4)],
}
# Stores and loads counted together. A mask by row is loaded through an address for each of a thread's scores, up to 64:
# such tiles may spill more than tuning allows, which takes smaller ones then.
SPILL_LIMIT_BYTES, SPILL_LIMIT_BYTES_BY_ROW = 128, 384


def test_it_compiles_fits_and_hardly_spills() -> None:
    cases = []
    for place, row in enumerate(covering_rows(COMPILED, seed=2)):
        dim, block_kv, stages = row.pop("shape")
        cases.append(
            replace(LONG, head_dim=dim, value_dim=dim, block_kv=block_kv, num_stages=stages, q_len=2,
                    sink=place % 2 == 0, launch_overlap=place % 3 == 0, **row)
        )  # fmt: skip
    specs = [spec_of(case, build(case)) for case in cases]
    configs = [replace(config_of(case), launch_overlap=case.launch_overlap) for case in cases]
    jobs = [(spec, config, H200) for spec, config in zip(specs, configs, strict=True)]
    for case, spec, config, result in zip(cases, specs, configs, compile_elsewhere(jobs), strict=True):
        assert not isinstance(result, str), f"{case.name}: {result}"
        kernel = result[0]
        assert isinstance(kernel, CompiledKernel)
        estimate = shared_memory_estimate_bytes(spec, config)
        assert estimate - BARRIERS_BYTES < kernel.shared_bytes <= estimate <= H200.shared_memory_bytes
        limit = SPILL_LIMIT_BYTES_BY_ROW if spec.mask_per_row else SPILL_LIMIT_BYTES
        assert kernel.spill_bytes is not None and kernel.spill_bytes <= limit, f"{case.name}: {kernel}"
        assert kernel.registers == ring_registers(spec.head_dim, spec.element_bytes, config)


def test_why_it_cannot_run() -> None:
    case = replace(PLAIN, mask="none")
    spec, config = spec_of(case, build(case)), config_of(case)
    assert why_inadmissible(spec, config, H200) is None

    def refused(words: str, spec: object = spec, config: KernelConfig = config, device: object = H200) -> None:
        reason = why_inadmissible(spec, config, device)  # type: ignore[arg-type]
        assert reason is not None and words in reason, reason

    refused("interpreter", device=INTERPRETER)
    refused("sm_90", device=REFERENCE_DEVICES[100])
    refused("sm_90", device=REFERENCE_DEVICES[80])
    refused("not of 80 and 80", replace(spec, head_dim=80, value_dim=80))
    refused("sums of 32 columns", replace(spec, dtype=torch.float32))
    refused("no prefetch", config=replace(config, prefetch_depth=1))
    refused("no prefetch", config=replace(config, merge=Merge.INPLACE))
    refused("4 warps", config=replace(config, num_warps=8))
    refused("4 warps", config=replace(config, operand_order=OperandOrder.QK64))
    for other in (
        {"block_kv": 16},
        {"block_kv": 256},
        {"num_stages": 1},
        {"partition": Partition.EVEN},
        {"num_splits": 1},
    ):
        refused("a ring brings two tiles and more", config=replace(config, **other))  # type: ignore[arg-type]
