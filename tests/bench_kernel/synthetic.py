"""Made-up runs: the times that a simple model gives, so that tables and plots have something like the real to show."""

from __future__ import annotations

import random
from collections.abc import Iterable

from prefetch_compiler.bench.kernel.cases import Case
from prefetch_compiler.bench.kernel.grid import Sweep, declared, swept
from prefetch_compiler.bench.kernel.oracle import OUR_LIMIT, PEER_LIMIT, Correctness
from prefetch_compiler.bench.kernel.peers.registry import all_peers
from prefetch_compiler.bench.kernel.result import (
    BEST_BARE,
    BEST_PREFETCHING,
    DETERMINISTIC,
    HEURISTIC,
    OUR_FAMILY,
    SHIPPED,
    Availability,
    CaseCeiling,
    CaseResult,
    KernelRun,
    NotRun,
    PeerResult,
    Status,
)
from prefetch_compiler.bench.samples import Samples

# Microseconds beyond reading, and reading's slowdown.
COSTS = {
    "sdpa cudnn": (3.5, 1.02), "sdpa flash": (6.0, 1.6), "sdpa cudnn mask gqa": (6.0, 1.6), "sdpa math": (20.0, 9.0),
    "flex": (12.0, 1.1), "flashinfer": (5.5, 1.06), "flashinfer xqa": (4.0, 1.08), "flash-attention 2": (6.0, 1.5),
    "flash-attention 3": (5.0, 1.05), "xformers split-k": (9.0, 1.3),
}  # fmt: skip
OUR_COSTS = {
    SHIPPED: (2.2, 1.02),
    HEURISTIC: (2.6, 1.05),
    DETERMINISTIC: (2.8, 1.06),
    BEST_BARE: (2.1, 1.015),
    BEST_PREFETCHING: (2.3, 1.03),
}
CONFIG = "b64-s8-w2-st4-p0line-pointer-qk-pdl-separate"


def reading_us(byte_count: int) -> float:
    return 1.2 + byte_count / 4.6e6


def synthetic_run(cases: Iterable[Case], sweep: Sweep | None = None, seed: int = 0) -> KernelRun:
    draw = random.Random(seed)
    peers = all_peers()
    environment = {"device": "NVIDIA H200", "torch": "2.11.0+cu130", "templates_sha256": "ab" * 32, "command": "bench"}
    availability = [Availability(peer.name, peer.family, None) for peer in peers]
    settings = {"seed": seed, "sweep": None if sweep is None else sweep.value, "rounds": 9}
    results = [_case(case, seed, draw) for case in cases]
    return KernelRun(settings, environment, availability, results, [NotRun(declared()[-1], "the budget was used up")])


def sweep_run(sweep: Sweep) -> KernelRun:
    return synthetic_run(swept(sweep), sweep)


def _case(case: Case, seed: int, draw: random.Random) -> CaseResult:
    valid = case.valid_bytes(seed)
    ceiling = reading_us(valid)
    ours = [_ours(case, name, ceiling, draw) for name in OUR_COSTS]
    others = [_peer(case, peer.name, peer.family, peer.unsupported(case), ceiling, draw) for peer in all_peers()]
    lengths = case.lengths(seed)
    timing = CaseCeiling(ceiling, valid / ceiling * 1e-6, valid, "block_words=4096", Samples([ceiling]))
    return CaseResult(case, valid, case.capacity_bytes, 4, min(lengths), max(lengths), timing, ours + others, 7.0)


def _samples(cost: tuple[float, float], reading: float, draw: random.Random) -> Samples:
    middle = (cost[0] + cost[1] * reading) * draw.uniform(0.97, 1.06)
    return Samples([middle * draw.uniform(0.99, 1.02) for _ in range(9)])


def _ours(case: Case, name: str, reading: float, draw: random.Random) -> PeerResult:
    right = Correctness(0.4, 2e-3, OUR_LIMIT, case.batch)
    verdict = "exact: tuned for NVIDIA H200" if name == SHIPPED else "heuristic"
    samples = _samples(OUR_COSTS[name], reading, draw)
    return PeerResult(name, OUR_FAMILY, Status.MEASURED, "", CONFIG, verdict, right, samples)


def _peer(case: Case, name: str, family: str, refusal: str | None, reading: float, draw: random.Random) -> PeerResult:
    if refusal is not None:
        return PeerResult(name, family, Status.UNSUPPORTED, refusal)
    if name not in COSTS:
        return PeerResult(name, family, Status.FAILED, "RuntimeError: no")
    samples = _samples(COSTS[name], reading, draw)
    if name == "flex" and case.head_dim == 80:
        wrong = Correctness(300.0, 0.8, PEER_LIMIT, case.batch)
        return PeerResult(name, family, Status.WRONG, wrong.describe(), correctness=wrong, samples=Samples([1.0]))
    return PeerResult(name, family, Status.MEASURED, "", None, None, Correctness(1.5, 3e-3, PEER_LIMIT, 4), samples)
