"""A whole run: every case in turn, each set up, contested and given back, until the budget is used up."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from ...device import profile
from ..environment import describe_environment
from ..errors import DeviceLostError
from .cases import Case
from .compile_ahead import CompileAhead
from .contest import Contest, device_works
from .operands import cache_count, create_operands, why_too_large
from .oracle import OUR_LIMIT, PEER_LIMIT
from .peers.peer import Peer, first_line
from .result import Availability, CaseResult, KernelRun, NotRun, Status

Say = Callable[[str], None]
Keep = Callable[[KernelRun], None]


@dataclass(frozen=True)
class KernelSettings:
    """What a run is asked for.

    Attributes:
        rounds: samples of each candidate.
        search: configurations that each of our two searches measures in a case; 0 for no search.
        budget_s: no case is started after so many seconds; None for no limit.
        sweep: the size that ``cases`` sweep, for plots; None where they sweep none.
        ours: whether our own kernels take part.
        part: which of how many parts ``cases`` are, as ``K/N``.
    """

    cases: tuple[Case, ...]
    peers: tuple[Peer, ...]
    rounds: int = 21
    search: int = 24
    seed: int = 0
    budget_s: float | None = None
    sweep: str | None = None
    ours: bool = True
    part: str = "1/1"

    def to_dict(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name not in ("cases", "peers")}
        limits = {"our_error_limit": OUR_LIMIT, "peer_error_limit": PEER_LIMIT}
        return {**plain, **limits, "cases": len(self.cases), "peers": [peer.name for peer in self.peers]}


class KernelBench:
    """Args:
    say: receives progress, one line at a time.
    keep: receives the run so far after each case.
    """

    def __init__(self, settings: KernelSettings, device: torch.device, say: Say, keep: Keep) -> None:
        self._settings, self._device, self._say, self._keep = settings, device, say, keep
        self._profile = profile(device)
        self._compiler = CompileAhead(self._profile)
        self._unavailable = {peer.name: peer.unavailable() for peer in settings.peers}
        availability = [Availability(peer.name, peer.family, self._unavailable[peer.name]) for peer in settings.peers]
        self._run = KernelRun(settings.to_dict(), describe_environment(device), availability)

    def run(self) -> KernelRun:
        """Never raises for what a peer does."""
        started = time.monotonic()
        waiting = list(self._settings.cases)
        try:
            while waiting:
                budget = self._settings.budget_s
                if budget is not None and time.monotonic() - started > budget:
                    self._skip(waiting, f"the budget of {budget:g} s was used up")
                    break
                self._case(waiting[0])
                del waiting[0]
        except DeviceLostError as error:
            self._skip(waiting, str(error))
        finally:
            self._compiler.close()
        self._keep(self._run)
        return self._run

    def _skip(self, cases: Sequence[Case], reason: str) -> None:
        self._run.not_run += [NotRun(case, reason) for case in cases]
        self._say(f"{len(cases)} cases not run: {reason}")

    def _case(self, case: Case) -> None:
        """Raises: DeviceLostError."""
        started = time.monotonic()
        give_back_memory()
        free_bytes, _ = torch.cuda.mem_get_info(self._device)
        reason = why_too_large(case, free_bytes)
        if reason is not None:
            self._skip([case], reason)
            return
        try:
            with torch.no_grad():
                result = self._contested(case, free_bytes)
        except torch.cuda.OutOfMemoryError:
            self._skip([case], "out of GPU memory outside any peer")
            return
        except DeviceLostError:
            raise
        except Exception as error:  # the cases that are measured must not be lost by one that cannot be
            if not device_works(self._device):
                raise DeviceLostError(case.name, first_line(error)) from error
            self._skip([case], first_line(error))
            return
        result.seconds = time.monotonic() - started
        self._run.cases.append(result)
        self._say(summary(result))
        self._keep(self._run)

    def _contested(self, case: Case, free_bytes: int) -> CaseResult:
        settings, device = self._settings, self._device
        valid_bytes = case.valid_bytes(settings.seed)
        caches = cache_count(case.capacity_bytes, valid_bytes, self._profile.l2_bytes, free_bytes)
        operands = create_operands(case, settings.seed, caches, device)
        contest = Contest(operands, device, self._profile)
        if settings.ours:
            contest.enter_ours(self._compiler, settings.search)
        for peer in settings.peers:
            contest.enter(peer, self._unavailable[peer.name])
        ceiling = contest.time(settings.rounds, valid_bytes)
        lengths = operands.lengths
        return CaseResult(
            case, valid_bytes, case.capacity_bytes, caches, min(lengths), max(lengths), ceiling, contest.results
        )


def give_back_memory() -> None:
    """Graphs and caches of the case before hold one another; what they held is for the next."""
    gc.collect()
    # A capture that a peer broke can leave the allocator unable to; what does not fit then is skipped.
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


def summary(result: CaseResult) -> str:
    """One line on a case as soon as it is done."""
    ceiling = result.ceiling
    parts = [f"{result.case.name} ({result.seconds:.0f} s): ceiling {ceiling.time_us:.1f} µs"]
    if ceiling.first_us is not None:
        parts.append(f"first {ceiling.first_us:.1f} µs, which {ceiling.first_beaten_by} beat")
    if (beaten_by := result.ceiling_beaten_by) is not None:
        parts.append(f"still beaten by {beaten_by.name}")
    parts += [
        f"{kind} {found.ranked_us:.1f} µs ({found.name})"
        for kind, found in (("ours", result.best_of_ours), ("best peer", result.best_peer))
        if found is not None
    ]
    bad = [f"{peer.name} {peer.status.value}" for peer in result.peers if peer.status in (Status.WRONG, Status.FAILED)]
    return ", ".join([*parts, *bad])
