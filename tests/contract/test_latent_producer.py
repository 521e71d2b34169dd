"""The kernel over latent caches with a producer warp: every case within its error bound, reading nothing that no query
sees. On an sm_90 GPU as it is; elsewhere emulated, and compiled for sm_90."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
from prefetch_compiler.templates.manifest import LATENT

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder, Partition
from prefetch_compiler.device import INTERPRETER, REFERENCE_DEVICES
from prefetch_compiler.lower.addresses import for_these_addresses
from prefetch_compiler.lower.launch import allocate, calls_of
from prefetch_compiler.lower.precompile import CompiledKernel
from prefetch_compiler.lower.quick_check import why_wrong
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.footprint import BARRIERS_BYTES, shared_memory_estimate_bytes
from prefetch_compiler.select.heuristic import choose, choose_without_producer

from .cases import DEVICE, WITHIN_SEQUENCES
from .compile_worker import compile_elsewhere
from .covering import covering_rows
from .error_bounds import assert_within_bound
from .gluon_emulator import FOLDER, emulate, emulated
from .happens_before import RaceError
from .latent_cases import LatentCase, build, solve
from .poison import uninitialised_is_nan

# Triton's interpreter, which merges what is emulated, warns at every scalar that it converts.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")

H200 = REFERENCE_DEVICES[90]
ON_SM90 = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
needs_sm90 = pytest.mark.skipif(torch.cuda.is_available() and not ON_SM90, reason="needs a GPU of sm_90")
needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="merges in the interpreter: hide the GPU")
MODULE = "latent_producer"

LATENTS = LatentCase(latent_dim=512, rope_dim=64, block_kv=64, load_path=LoadPath.PRODUCER)
# Every pair of values of two factors meets in some case.
FACTORS = {
    "mask": [
        "none", "causal", "lengths", "causal_lengths", "ragged", "left_padded_causal", "hole", "per_row", "alibi",
    ],
    "heads": [1, 5, 23],
    "q_len": [1, 3],
    "keys": [1, 63, 64, 65, 200, 330],
    "num_splits": [1, 2, 3],
    "dtype": [torch.float16, torch.bfloat16],
    "in_one": [False, True],
    "softcap": [None, 2.0],
    "sink": [False, True],
    "batch": [1, 2],
    "heads_first": [True, False],
    "partition": WITHIN_SEQUENCES,
}  # fmt: skip
CASES = [replace(LATENTS, **row) for row in covering_rows(FACTORS, seed=5)]
# As many tiles as make every barrier come round twice, and a last one that is partly stale.
LONG = replace(LATENTS, heads=128, keys=600, mask="lengths")
GPU_CASES = [
    *CASES,
    *(replace(LONG, dtype=dtype, batch=3, keys=keys, num_splits=splits, partition=partition)
      for dtype in (torch.float16, torch.bfloat16)
      for keys in (127, 128, 129, 4096, 5003)
      for splits, partition in ((1, Partition.EVEN), *((7, partition) for partition in WITHIN_SEQUENCES))),
]  # fmt: skip


def config_of(case: LatentCase) -> KernelConfig:
    return KernelConfig(64, case.num_splits, 4, 2, partition=case.partition).with_producer()


def solve_emulated(case: LatentCase, seed: int, folder: Path = FOLDER, scale: float | None = None) -> None:
    """The whole launch on the CPU, and a complaint if it is wrong."""
    given = build(case)
    if scale is not None:
        given = replace(given, spec=replace(given.spec, scale=scale))
    config = config_of(case)
    assert why_inadmissible(given.spec, config, H200) is None
    with uninitialised_is_nan():
        tensors = allocate(
            given.q, given.stale_k, given.stale_v, given.expanded_mask(), given.bounds, case.heads_first, config,
            lengths=given.lengths, sink=given.sink, rope=given.rope,
        )  # fmt: skip
        decode, *merge = calls_of(
            tensors, is_causal=given.spec.is_causal, scale=given.scale, softcap=given.softcap, config=config
        )
        emulate(decode, emulated(MODULE, folder).latent_producer, seed)
        for call in merge:
            call.launch()
    assert_within_bound(tensors.out, given)


@needs_interpreter
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_algorithm(case: LatentCase) -> None:
    solve_emulated(case, seed=1)


@needs_interpreter
@pytest.mark.parametrize("scale", [-0.05, 0.0])
def test_a_scale_that_is_not_positive(scale: float) -> None:
    solve_emulated(replace(LATENTS, keys=100), seed=0, scale=scale)


@needs_interpreter
@pytest.mark.parametrize("seed", range(4))
def test_no_order_of_warp_groups_is_wrong(seed: int) -> None:
    solve_emulated(replace(LONG, heads=5, batch=1), seed)


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
        ("mbarrier.wait(bars.index(FULL + stage), phase)", "pass"),
        ("mbarrier.wait(bars.index(P_FULL + stage), phase)", "pass"),
        ("mbarrier.wait(bars.index(EMPTY + stage), phase)", "pass"),
        ("mbarrier.wait(bars.index(DONE), 0)", "pass"),
        ("mbarrier.init(bars.index(index), count=2)", "mbarrier.init(bars.index(index), count=1)"),
        ("clear_stale(right.index(stage), end - key)", "pass"),
        ("    stage = 0\n    phase = 1\n", "    stage = 0\n    phase = 0\n"),
    ],
    ids=lambda text: text.split("\n")[0],
)
def test_what_is_not_waited_for_or_cleared_is_noticed(right: str, wrong: str, tmp_path: Path) -> None:
    """In some order of warp groups, of a few."""
    changed_templates(tmp_path, right, wrong)
    with pytest.raises(AssertionError):
        for seed in range(5):
            solve_emulated(replace(LONG, heads=5, batch=1), seed, tmp_path)


_FENCE, _BARRIER = "fence_async_shared()\n", "tl.debug_barrier()\n"
_QUERIES_STORED, _TILE_CLEARED, _P_STORED = (
    f"    {_FENCE}    {_BARRIER}    row = ",
    f"            {_FENCE}            {_BARRIER}",
    f"        {_FENCE}        {_BARRIER}        mbarrier.arrive(bars.index(P_FULL + stage)",
)
_TILE_USED = f"        {_BARRIER}        mbarrier.arrive(bars.index(EMPTY + stage)"
_SUMS_STORED = f"store(total)\n    {_BARRIER}"
_UNFENCED, _FACTORS = "product or copy of {} without a fence races with write of leader", "read of follower races"
_OVERWRITTEN = "product or copy of copy . of producer races with product or copy of {}"


@needs_interpreter
@pytest.mark.parametrize(
    ("right", "without", "place", "places", "words"),
    [
        (_QUERIES_STORED, _FENCE, 0, 1, _UNFENCED.format("leader")),
        (_QUERIES_STORED, _BARRIER, 0, 1, _UNFENCED.format("leader")),
        (_TILE_CLEARED, _FENCE, 0, 1, _UNFENCED.format("leader")),
        (_TILE_CLEARED, _BARRIER, 0, 1, _UNFENCED.format("leader")),
        (_P_STORED, _FENCE, 0, 1, _UNFENCED.format("follower")),
        (_P_STORED, _BARRIER, 0, 1, _FACTORS),
        (_SUMS_STORED, _BARRIER, 0, 1, _FACTORS),
        (_TILE_USED, _BARRIER, 0, 2, _OVERWRITTEN.format("follower")),
        (_TILE_USED, _BARRIER, 1, 2, _OVERWRITTEN.format("leader")),
        ("mbarrier.wait(bars.index(FULL + stage), phase)", "", 0, 1, "leader races with product or copy of copy"),
        ("mbarrier.wait(bars.index(DONE), 0)", "", 0, 1, _FACTORS),
    ],
)
def test_what_orders_accesses_is_missed(
    right: str, without: str, place: int, places: int, words: str, tmp_path: Path
) -> None:
    """In any order of warp groups."""
    wrong = right.replace(without, "pass\n") if without else "pass"
    changed_templates(tmp_path, right, wrong, place, places)
    for seed in range(2):
        with pytest.raises(RaceError, match=words):
            solve_emulated(replace(LONG, heads=5, batch=1), seed, tmp_path)


@needs_sm90
@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=lambda case: case.name)
def test_the_kernel(case: LatentCase) -> None:
    given = build(case)
    out = solve(case, given)
    assert_within_bound(out, given)
    order = (0, 1, 2, 3) if case.heads_first else (0, 2, 1, 3)
    assert out.permute(order).is_contiguous()


@needs_sm90
@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 4])
def test_overlapped_launches_in_a_row_give_the_same_bits(splits: int) -> None:
    """Of one that began before its predecessor was done with the scratch memory they would differ."""
    case = replace(LONG, batch=4, keys=2000, num_splits=splits)
    given = build(case)
    config = replace(config_of(case), launch_overlap=True)
    outs = []
    for _ in range(20):
        tensors = allocate(given.q, given.stale_k, given.stale_v, None, None, True, config, lengths=given.lengths,
                           rope=given.rope)  # fmt: skip
        for call in calls_of(tensors, is_causal=False, scale=given.scale, config=config):
            call.launch()
        outs.append(tensors.out)
    assert_within_bound(outs[-1], given)
    assert all(torch.equal(out, outs[0]) for out in outs)


@needs_sm90
@pytest.mark.gpu
def test_the_quick_check_passes_what_is_right() -> None:
    case = replace(LATENTS, sink=True, softcap=3.0, dtype=torch.bfloat16)
    assert why_wrong(case.spec(), config_of(case), DEVICE) is None


# What the kernel's constants tell apart; all else is arguments. Masks by row: see SPILL_LIMIT_BYTES.
COMPILED = {
    "mask": ["none", "causal", "causal_lengths", "prefix", "per_row", "alibi"],
    "num_splits": [1, 3],
    "dtype": [torch.float16, torch.bfloat16],
    "softcap": [None, 2.0],
}
# Stores and loads counted together. A mask by row is loaded through an address for each of 32 scores of a thread, when
# the output holds half of its registers: what is not needed meanwhile goes to local memory and back.
SPILL_LIMIT_BYTES, SPILL_LIMIT_BYTES_BY_ROW = 128, 256
# Than the one that registers were shared out with among warps. Triton 3.9 assembles for sm_90 with a later ptxas, which
# spills up to 228 bytes of soft caps and 400 of masks by row.
LATER_TRITON = tuple(map(int, triton.__version__.split(".")[:2])) > (3, 6)


def test_it_compiles_fits_and_hardly_spills() -> None:
    cases = [
        replace(
            LATENTS, heads=128, q_len=2, keys=300, sink=place % 2 == 0, partition=WITHIN_SEQUENCES[place % 4], **row
        )
        for place, row in enumerate(covering_rows(COMPILED, seed=2))
    ]
    assert {case.partition for case in cases} == set(WITHIN_SEQUENCES)
    configs = [replace(config_of(case), launch_overlap=place % 2 == 0) for place, case in enumerate(cases)]
    jobs = [(case.spec(), config, H200) for case, config in zip(cases, configs, strict=True)]
    for case, config, result in zip(cases, configs, compile_elsewhere(jobs), strict=True):
        assert not isinstance(result, str), f"{case.name}: {result}"
        kernel = result[0]
        assert isinstance(kernel, CompiledKernel)
        estimate = shared_memory_estimate_bytes(case.spec(), config)
        assert estimate - BARRIERS_BYTES < kernel.shared_bytes <= estimate <= H200.shared_memory_bytes
        assert kernel.spill_bytes is not None
        if LATER_TRITON:
            continue
        limit = SPILL_LIMIT_BYTES_BY_ROW if case.spec().mask_per_row else SPILL_LIMIT_BYTES
        assert kernel.spill_bytes <= limit, f"{case.name} spills {kernel.spill_bytes} bytes"


def test_why_it_cannot_run() -> None:
    spec, config = LATENTS.spec(), config_of(LATENTS)
    assert why_inadmissible(spec, config, H200) is None

    def refused(words: str, spec: object = spec, config: KernelConfig = config, device: object = H200) -> None:
        reason = why_inadmissible(spec, config, device)  # type: ignore[arg-type]
        assert reason is not None and words in reason, reason

    refused("interpreter", device=INTERPRETER)
    refused("sm_90", device=REFERENCE_DEVICES[100])
    refused("sm_90", device=REFERENCE_DEVICES[80])
    refused("512 and 64 columns, not 256 and 64", replace(LATENTS, latent_dim=256).spec())
    refused("512 and 64 columns, not 512 and 32", replace(LATENTS, rope_dim=32).spec())
    refused("16-bit", replace(LATENTS, dtype=torch.float32).spec())
    for other in ({"block_kv": 32}, {"num_stages": 3}, {"num_warps": 8}, {"operand_order": OperandOrder.KQ}):
        refused("no other than b64-", config=replace(config, **other))  # type: ignore[arg-type]


def test_a_triton_without_gluon_makes_it_inadmissible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefetch_compiler.select.admissible.has_gluon", lambda: False)
    spec = replace(LATENTS, heads=128).spec()
    assert "Gluon" in (why_inadmissible(spec, config_of(LATENTS), H200) or "")
    assert choose(spec, H200) == choose_without_producer(spec, H200)
    assert choose(spec, H200).load_path is not LoadPath.PRODUCER


@pytest.mark.parametrize(
    ("heads", "q_len", "batch", "keys", "splits"),
    [(128, 1, 64, 4096, 1), (128, 1, 128, 2048, 1), (128, 1, 16, 8192, 4), (16, 4, 16, 8192, 8), (40, 1, 64, 4096, 2)],
)
def test_the_heuristic_fills_the_device(heads: int, q_len: int, batch: int, keys: int, splits: int) -> None:
    case = replace(LATENTS, heads=heads, q_len=q_len, batch=batch, keys=keys, mask="none", dtype=torch.bfloat16)
    chosen = choose(case.spec(), H200)
    assert (chosen.load_path, chosen.num_splits) == (LoadPath.PRODUCER, splits)


def test_the_heuristic_leaves_few_rows_to_the_other_kernel() -> None:
    assert choose(replace(LATENTS, heads=32).spec(), H200).load_path is LoadPath.POINTER


def test_at_an_odd_address_the_other_kernel_serves() -> None:
    odd = torch.empty(2, dtype=torch.bfloat16)[1:]
    served = for_these_addresses(config_of(replace(LATENTS, num_splits=3)), odd, odd)
    assert (served.load_path, served.num_splits) == (LoadPath.POINTER, 3)
    assert why_inadmissible(replace(LATENTS, heads=128).spec(), served, H200) is None


def test_the_template_has_it_among_its_kernels() -> None:
    assert f"{MODULE}.latent_producer" in LATENT.entries
