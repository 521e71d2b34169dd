"""One key's trials as a pipeline: while one configuration is measured, those asked for next are being compiled."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from ..config import KernelConfig
from .compile_pool import CompileOutcome, Compiler
from .feasible import SPILL_LIMIT_BYTES, spill_limit, why_too_large
from .protocol import FailureKind, Measurer, Outcome, TrialFailure, TrialRequest
from .study import Candidate, KeyStudy

# Of a study's trials at most this share is asked for before their predecessors are known.
_LOOKAHEAD = 8
# Of the first ones, which depend on nothing, a worker of several takes so many at a time even of a study of few trials:
# with one, its compilers would wait for its measurements.
_SHARED_WINDOW = 4
_POLL_S = 0.5


@dataclass(frozen=True)
class _Pending:
    candidate: Candidate
    compiled: Future[CompileOutcome]


class KeyRun:
    """Runs a study's trials. Without a compiler, compiling is the measurer's business.

    Args:
        window: configurations that are compiled ahead. Beyond the study's first ones, which depend on nothing, no more
            than a share of its trials.
        shared: other workers ask for the same ones at the same time: no more than that share of them either, or a few.
        timeout_s: after which nothing more is asked for, counted from the first measurement.
    """

    def __init__(
        self,
        study: KeyStudy,
        compiler: Compiler | None,
        measurer: Measurer,
        *,
        seed: int,
        window: int = 4,
        timeout_s: float = float("inf"),
        shared: bool = False,
    ) -> None:
        self.study = study
        self._compiler, self._measurer = compiler, measurer
        self._seed, self._timeout_s = seed, timeout_s
        self._lookahead = max(1, min(window, study.trials // _LOOKAHEAD))
        self._window = max(1, min(window, max(_SHARED_WINDOW, self._lookahead)) if shared else window)
        self._pending: list[_Pending] = []
        self._started: float | None = None
        self._spill_limit: int | None = None
        self.asked_out = False
        self.finished_it = False

    @property
    def timed_out(self) -> bool:
        return self._started is not None and time.monotonic() - self._started > self._timeout_s

    def fill(self) -> None:
        """Ask for configurations, and have them compiled, until the window is full."""
        while not self.timed_out and len(self._pending) < (self._window if self.study.enqueued else self._lookahead):
            candidate = self.study.ask()
            self.asked_out = candidate is None
            if candidate is None:
                return
            self._pending.append(_Pending(candidate, self._compile(candidate.config)))

    def step(self) -> tuple[KernelConfig, Outcome] | None:
        """Finish one trial; None when there is none left to this worker."""
        if self._started is None:
            self._started = time.monotonic()
        self.fill()
        if self.timed_out:
            self.abandon()
        if not self._pending:
            return None
        pending = self._next_compiled()
        outcome = self._outcome(pending)
        self.study.tell(pending.candidate, outcome)
        self.finished_it = self.study.finished
        return pending.candidate.config, outcome

    def abandon(self) -> None:
        """Leave to a later run what was asked for and not measured."""
        while self._pending:
            self.study.give_back(self._pending.pop().candidate)
        self.asked_out = True

    def _compile(self, config: KernelConfig) -> Future[CompileOutcome]:
        if self._compiler is not None:
            return self._compiler.submit(self.study.key, config)
        nothing: Future[CompileOutcome] = Future()
        nothing.set_result(())
        return nothing

    def _next_compiled(self) -> _Pending:
        """The first of those asked for that is compiled."""
        while True:
            for number, pending in enumerate(self._pending):
                if pending.compiled.done():
                    return self._pending.pop(number)
            wait([pending.compiled for pending in self._pending], _POLL_S, FIRST_COMPLETED)

    def _outcome(self, pending: _Pending) -> Outcome:
        compiled, config = pending.compiled.result(), pending.candidate.config
        if isinstance(compiled, TrialFailure):
            return compiled
        if config != self.study.default:
            reason = why_too_large(compiled, self.study.profile, self._limit())
            if reason is not None:
                return TrialFailure(FailureKind.RESOURCES, reason, 0.0)
        return self._measurer.trial(TrialRequest(self.study.key, config, self._seed))

    def _limit(self) -> int:
        """Bytes that a kernel may spill. The default is compiled first, so this hardly ever waits."""
        if self._spill_limit is None:
            compiled = self._compile(self.study.default).result()
            self._spill_limit = SPILL_LIMIT_BYTES if isinstance(compiled, TrialFailure) else spill_limit(compiled)
        return self._spill_limit
