"""Measuring on a GPU: times mean what they claim, and no kernel takes more than its own trial down."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefetch_compiler.bench.ceiling import measure_ceiling
from prefetch_compiler.bench.device_clock import device_us
from prefetch_compiler.config import KernelConfig, LoadPath, Merge
from prefetch_compiler.database.key import Alignment, Feature, Layout, MaskClass, TuningKey
from prefetch_compiler.device import profile
from prefetch_compiler.lower.launch import launch_decode
from prefetch_compiler.select.heuristic import choose
from prefetch_compiler.tuning import bench_worker
from prefetch_compiler.tuning.bench_worker import Reply
from prefetch_compiler.tuning.ceilings import Ceilings
from prefetch_compiler.tuning.errors import WrongResultError
from prefetch_compiler.tuning.measurer import GpuMeasurer, Worker
from prefetch_compiler.tuning.protocol import FailureKind, Outcome, TrialFailure, TrialRequest, TrialResult
from prefetch_compiler.tuning.session import FINAL_ROUNDS, RAGGED_ORDERS, Session
from prefetch_compiler.tuning.verification import verify

from ..tuning.mutants import mutated_templates
from ..tuning.seeded_bugs import GPU_BUGS
from . import gpu_faults

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda", 0)
LLAMA = TuningKey("bfloat16", "bfloat16", 4, 8, 128, 128, 1, 1, 8192, Layout.BHSD, Alignment.TMA, MaskClass.BOOL)
KEYS = {
    "llama": LLAMA,
    "llama, batch 64": LLAMA.at(batch=64, capacity=4096),
    "llama, long": LLAMA.at(batch=1, capacity=131072),
    "short": LLAMA.at(batch=2, capacity=64),
    "no mask": replace(LLAMA, mask=MaskClass.NONE),
    "several queries": replace(LLAMA, mask=MaskClass.BOOL_ROWS, q_len_bucket=4),
    "additive": replace(LLAMA, mask=MaskClass.ADDITIVE, mask_dtype="bfloat16"),
    "biased heads": replace(LLAMA, mask=MaskClass.ADDITIVE_ROWS, mask_dtype="float32"),
    "causal": replace(LLAMA, mask=MaskClass.CAUSAL, q_len_bucket=8),
    "float32": replace(LLAMA, dtype="float32", kv_dtype="float32"),
    "float16, one head for 71": replace(
        LLAMA, dtype="float16", kv_dtype="float16", group=71, kv_heads=1, head_dim=64, value_dim=64
    ),
    "heads of 80": replace(LLAMA, group=1, kv_heads=32, head_dim=80, value_dim=80),
    "projected": replace(LLAMA, layout=Layout.BSHD),
    "unaligned": replace(LLAMA, alignment=Alignment.NONE),
    "shared": replace(LLAMA, alignment=Alignment.ROWS, batch_bucket=4),
    "strided": replace(LLAMA, layout=Layout.STRIDED),
    "pages of 1": replace(LLAMA, mask=MaskClass.LENGTHS, features=(Feature.PAGE1,)),
    "pages of 16": replace(LLAMA, mask=MaskClass.LENGTHS, layout=Layout.BSHD, features=(Feature.PAGE16,)),
    "pages of 64, batch 64": replace(
        LLAMA, mask=MaskClass.LENGTHS, batch_bucket=64, capacity_bucket=4096, features=(Feature.PAGE64,)
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_default_is_right_on_every_seed(name: str) -> None:
    key = KEYS[name]
    config = choose(key.spec(), profile(DEVICE))
    for seed in range(3):
        assert 0 < verify(key, config, seed, DEVICE) <= 1


@pytest.mark.parametrize("merge", Merge)
@pytest.mark.parametrize("load_path", [LoadPath.POINTER, LoadPath.TMA])
@pytest.mark.parametrize("launch_overlap", [False, True])
def test_what_is_right_survives_launches_in_a_row(merge: Merge, load_path: LoadPath, launch_overlap: bool) -> None:
    config = KernelConfig(
        block_kv=64, num_splits=8, num_warps=4, num_stages=2, merge=merge, load_path=load_path,
        launch_overlap=launch_overlap,
    )  # fmt: skip
    assert all(verify(LLAMA, config, seed, DEVICE) <= 1 for seed in range(3))


@pytest.mark.parametrize("name", GPU_BUGS)
def test_a_race_is_rejected(name: str, tmp_path: Path) -> None:
    case = GPU_BUGS[name]
    with mutated_templates(case.bugs, tmp_path) as launch:
        for seed in range(5):
            with pytest.raises(WrongResultError):
                verify(case.key, case.config, seed, DEVICE, launch)


def session(key: TuningKey) -> Session:
    torch.cuda.empty_cache()
    return Session(key, DEVICE, Ceilings(lambda count: measure_ceiling(count, DEVICE).samples.median_us))


def medians(result: TrialResult) -> list[float]:
    return [fill.median_us for fill in result.fills]


def test_time_follows_the_bytes_that_are_held() -> None:
    """1 GB when full: an eighth, a half and all of it, at a rate that memory allows. Of the half each sequence holds
    another share, and the longest are waited for."""
    key = KEYS["llama, batch 64"]
    result = session(key).trial(choose(key.spec(), profile(DEVICE)), 0.5)
    eighth, half, full = medians(result)
    assert 3 < full / eighth < 9
    assert 1.5 < full / half < 2.3
    assert [fill.held for fill in result.fills] == [512, 2048, 4096]
    assert [fill.kv_bytes for fill in result.fills] == [64 * 8 * 256 * 2 * held for held in (512, 2048, 4096)]
    shares = [fill.ceiling_us / fill.median_us for fill in result.fills]
    assert all(0.3 < share < 1.1 for share in shares), shares


@pytest.mark.parametrize("name", ["llama, batch 64", "pages of 64, batch 64", "several queries"])
def test_ragged_batches_are_timed_in_several_orders_of_the_same_lengths(name: str) -> None:
    """Else a configuration could be chosen for which programs it happens to make wait for which."""
    key = KEYS[name].at(batch=16, capacity=4096)
    eighth, ragged, full = session(key).fills
    assert (len(eighth.orders), len(ragged.orders), len(full.orders)) == (1, RAGGED_ORDERS, 1)
    assert FINAL_ROUNDS % RAGGED_ORDERS == 0
    held = [order.lengths if order.lengths is not None else order.bounds[:, 1] for order in ragged.orders]
    drawn = {tuple(lengths.tolist()) for lengths in held}
    assert len(drawn) == RAGGED_ORDERS
    assert len({tuple(sorted(lengths)) for lengths in drawn}) == 1
    assert all(sum(lengths) == pytest.approx(16 * ragged.held, rel=0.01) for lengths in drawn)


@pytest.mark.parametrize("name", ["pages of 16", "pages of 64, batch 64"])
def test_paged_caches_take_longer_the_more_they_hold(name: str) -> None:
    key = KEYS[name]
    result = session(key).trial(choose(key.spec(), profile(DEVICE)), 0.5)
    by_held = sorted(result.fills, key=lambda fill: fill.held)
    assert by_held[0].held < by_held[-1].held == key.capacity_bucket
    assert by_held[0].median_us < by_held[-1].median_us


def test_caches_are_found_cold() -> None:
    """A cache that L2 holds is read faster when it is read again at once; that is not what is measured."""
    key = LLAMA.at(batch=1, capacity=4096)
    state = session(key)
    config = choose(key.spec(), profile(DEVICE))
    cold = medians(state.trial(config, 0.5))[-1]
    cache = state.caches[0]
    spec = key.spec()

    def read_again() -> None:
        for _ in range(50):
            launch_decode(
                state.q_source, cache.k, cache.v, state.expanded, state.bounds, is_causal=False, scale=spec.scale,
                heads_first=True, config=config,
            )  # fmt: skip

    graph = state._graph(read_again)
    state._set(state.fills[-1].orders[0])
    warm = min(device_us(graph.replay) / 50 for _ in range(5))
    assert cold > 1.1 * warm


def test_the_same_configuration_measures_alike() -> None:
    """Twice among the finals: medians within a few percent, which is what choosing by them takes."""
    key = KEYS["llama, batch 64"]
    config = choose(key.spec(), profile(DEVICE))
    one, other = session(key).finals([config, config], [0.5, 0.5])
    assert one.objective_us == pytest.approx(other.objective_us, rel=0.02)
    assert {len(samples) for samples in one.samples_us} == {21}


def test_a_better_configuration_measures_better() -> None:
    key = KEYS["llama, batch 64"]
    good = choose(key.spec(), profile(DEVICE))
    bad = KernelConfig(block_kv=16, num_splits=1, num_warps=8, num_stages=1)
    measured = session(key)
    assert measured.trial(good, 0.5).objective_us * 1.2 < measured.trial(bad, 0.5).objective_us


@pytest.fixture(scope="module")
def measurer() -> Iterator[GpuMeasurer]:
    measurer = GpuMeasurer()
    yield measurer
    measurer.close()


def test_trials_and_finals(measurer: GpuMeasurer) -> None:
    config = choose(LLAMA.spec(), profile(DEVICE))
    other = replace(config, num_stages=2)
    assert isinstance(measurer.trial(TrialRequest(LLAMA, config, 0)), TrialResult)
    started = time.monotonic()
    outcome = measurer.trial(TrialRequest(LLAMA, other, 0))
    assert isinstance(outcome, TrialResult), outcome
    assert 0 < outcome.error <= 1
    assert time.monotonic() - started < 5
    finals = measurer.finals(LLAMA, (config, other), 10_000)
    assert all(isinstance(final, TrialResult) for final in finals), finals


def test_what_cannot_run_here_is_told(measurer: GpuMeasurer) -> None:
    too_large = KernelConfig(block_kv=256, num_splits=1, num_warps=8, num_stages=8)
    outcome = measurer.trial(TrialRequest(LLAMA, too_large, 0))
    assert isinstance(outcome, TrialFailure)
    assert outcome.kind is FailureKind.INADMISSIBLE
    outcome = measurer.trial(
        TrialRequest(LLAMA.at(batch=4096, capacity=1 << 20), choose(LLAMA.spec(), profile(DEVICE)), 0)
    )
    assert isinstance(outcome, TrialFailure)
    assert outcome.kind is FailureKind.OUT_OF_MEMORY


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    sys.path.insert(0, str(ROOT))
    worker = Worker(bench_worker.start, (0,))
    yield worker
    worker.close()
    sys.path.remove(str(ROOT))


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (gpu_faults.illegal_access, FailureKind.CRASH),
        (gpu_faults.endless_kernel, FailureKind.HANG),
        (gpu_faults.out_of_memory, FailureKind.OUT_OF_MEMORY),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_costs_one_trial(worker: Worker, task: Callable[..., Reply], kind: FailureKind) -> None:
    deadline_s = 10.0

    def ask(task: Callable[..., Reply]) -> Outcome:
        (outcome,) = worker.run(task, (), deadline_s, 1)
        return outcome

    assert isinstance(ask(gpu_faults.fine), TrialResult)
    outcome = ask(task)
    assert isinstance(outcome, TrialFailure)
    assert outcome.kind is kind, outcome
    assert outcome.seconds < deadline_s + 10
    assert isinstance(ask(gpu_faults.fine), TrialResult)


def test_a_killed_worker_gives_its_memory_back(worker: Worker, tmp_path: Path) -> None:
    """So much of it that other processes on the GPU, whose memory comes and goes, cannot hide it."""
    torch.cuda.empty_cache()
    before, total = torch.cuda.mem_get_info(DEVICE)
    held = total // 4
    (outcome,) = worker.run(gpu_faults.holds_memory, (held, tmp_path / "pid"), 5.0, 1)
    assert isinstance(outcome, TrialFailure)
    assert (tmp_path / "pid").exists()
    patience = time.monotonic() + 30
    while before - torch.cuda.mem_get_info(DEVICE)[0] > held // 2:
        assert time.monotonic() < patience, "the memory of a killed worker is still taken"
        time.sleep(0.5)
