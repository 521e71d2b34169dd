"""One case on the device: everyone is prepared, captured and checked, and then timed in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch

from ...config import KernelConfig
from ...device import DeviceProfile
from ...spec import AttentionSpec
from ...tuning.feasible import why_spec_infeasible
from ..errors import DeviceLostError
from ..samples import Samples
from .case_ceiling import CeilingTrial
from .compile_ahead import CompileAhead
from .operands import Operands
from .oracle import OUR_LIMIT, PEER_LIMIT, Correctness, Oracle
from .ours import NoChoice, OurChoice, attend_with, configs_of, standing_choices
from .peers.peer import Attend, Peer, UnsupportedCaseError, first_line, told
from .result import BEST_BARE, BEST_PREFETCHING, OUR_FAMILY, CaseCeiling, PeerResult, Status
from .search import search, with_prefetch, without_prefetch
from .stopwatch import Recording, Stopwatch

# Rounds in which the configurations of a search are compared.
SEARCH_ROUNDS = 5
NOT_SEARCHED = "not searched: --search 0"


class Contest:
    """Args:
    operands: the case; nothing else of its size is allocated here, but for what peers need.
    """

    def __init__(self, operands: Operands, device: torch.device, profile: DeviceProfile) -> None:
        self.results: list[PeerResult] = []
        self._operands, self._device, self._profile = operands, device, profile
        self._stopwatch = Stopwatch(operands, device)
        self._oracle = Oracle(operands)
        # Of ours, several names may stand for one configuration, which is measured once.
        self._entries: list[tuple[Recording, list[PeerResult]]] = []

    def enter(self, peer: Peer, unavailable: str | None) -> None:
        """Prepare a peer, or list it with the reason why not."""
        result = PeerResult(peer.name, peer.family, Status.UNAVAILABLE, unavailable or "")
        self.results.append(result)
        if unavailable is not None:
            return
        refusal = peer.unsupported(self._operands.case)
        if refusal is not None:
            result.status, result.reason = Status.UNSUPPORTED, refusal
        else:
            self._admit([result], lambda: peer.prepare(self._operands), PEER_LIMIT)

    def enter_ours(self, compiler: CompileAhead, count: int) -> None:
        """All four of ours. ``count`` is how many configurations each of the two searches measures."""
        spec = self._operands.case.spec()
        choices = standing_choices(spec, self._profile)
        choices += self._searched(spec, compiler, configs_of(choices), count)
        by_config: dict[KernelConfig, list[PeerResult]] = {}
        for choice in choices:
            result = PeerResult(choice.name, OUR_FAMILY, Status.FAILED)
            self.results.append(result)
            if isinstance(choice, NoChoice):
                result.status, result.reason = Status.UNSUPPORTED, choice.reason
                continue
            result.config, result.verdict = choice.config.encode(), choice.verdict
            by_config.setdefault(choice.config, []).append(result)
        for config, results in by_config.items():
            self._admit(results, partial(attend_with, self._operands, config), OUR_LIMIT)

    def time(self, rounds: int, valid_bytes: int) -> CaseCeiling:
        """Fill in everyone's samples. Returns the read ceiling over ``valid_bytes``, measured in the same rounds.

        Raises:
            NoReaderError: no ceiling could be measured.
        """
        trial = CeilingTrial(self._stopwatch, self._operands, valid_bytes, self._profile)
        finalists = trial.finalists()
        recordings = [*(recording for recording, _ in self._entries), *(recording for _, recording in finalists)]
        taken = self._stopwatch.rounds(recordings, rounds)
        for (_, results), samples_us in zip(self._entries, taken[: len(self._entries)], strict=True):
            for result in results:
                result.samples = Samples(list(samples_us))
        ceiling = trial.best(finalists, taken[len(self._entries) :])
        rival = self._faster_than(ceiling)
        if rival is None:
            return ceiling
        recording, name = rival
        return trial.again(recording, rounds, ceiling, name)

    def _faster_than(self, ceiling: CaseCeiling) -> tuple[Recording, str] | None:
        """The fastest that is right, if it is faster than the ceiling by more than noise."""
        right = [entry for entry in self._entries if entry[1][0].ranked_us is not None]
        if not right:
            return None
        recording, results = min(right, key=lambda entry: entry[1][0].samples.median_us)
        return (recording, results[0].name) if ceiling.is_beaten_by(results[0].samples) else None

    def _admit(self, results: Sequence[PeerResult], prepare: Callable[[], Attend], limit: float) -> None:
        """Capture and check. What fails is listed with its reason; the GPU must survive it.

        Raises:
            DeviceLostError: it did not.
        """
        try:
            recording, correctness = self._captured(prepare, limit)
        except UnsupportedCaseError as error:
            _mark(results, Status.UNSUPPORTED, str(error))
        except torch.cuda.OutOfMemoryError:
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
            _mark(results, Status.FAILED, "out of GPU memory")
        except Exception as error:  # a peer that cannot run is a result, not the end of the run
            reason = first_line(error)
            _mark(results, Status.FAILED, told(error))
            if not device_works(self._device):
                raise DeviceLostError(results[0].name, reason) from error
        else:
            right = correctness.right
            _mark(results, Status.MEASURED if right else Status.WRONG, "" if right else correctness.describe())
            for result in results:
                result.correctness = correctness
            self._entries.append((recording, list(results)))

    def _captured(self, prepare: Callable[[], Attend], limit: float) -> tuple[Recording, Correctness]:
        recording = self._stopwatch.record(prepare())
        return recording, self._oracle.judge(self._stopwatch.replayed(recording), limit)

    def _searched(
        self,
        spec: AttentionSpec,
        compiler: CompileAhead,
        starts: Sequence[KernelConfig],
        count: int,
    ) -> list[OurChoice | NoChoice]:
        if count == 0:
            return [NoChoice(name, NOT_SEARCHED) for name in (BEST_BARE, BEST_PREFETCHING)]

        def measure(configs: Sequence[KernelConfig]) -> list[float | None]:
            return self._quick_times(configs, compiler.refusals(spec, configs))

        def why_not(config: KernelConfig) -> str | None:
            return why_spec_infeasible(spec, config, self._profile)

        choices: list[OurChoice | NoChoice] = []
        for name, first in ((BEST_BARE, without_prefetch(starts)), (BEST_PREFETCHING, with_prefetch(starts))):
            found = search(first, measure, why_not, count)
            if found is None:
                choices.append(NoChoice(name, "no configuration of the search could be measured"))
            else:
                choices.append(OurChoice(name, found.config, f"the best of {found.measured} in a search"))
        return choices

    def _quick_times(self, configs: Sequence[KernelConfig], refusals: Sequence[str | None]) -> list[float | None]:
        """Median microseconds of each, in a few interleaved rounds; None for those refused, failing, or wrong."""
        recordings: dict[int, Recording] = {}
        for number, (config, refusal) in enumerate(zip(configs, refusals, strict=True)):
            if refusal is None and (recording := self._right_recording(config)) is not None:
                recordings[number] = recording
        if not recordings:
            return [None] * len(configs)
        taken = self._stopwatch.rounds(list(recordings.values()), SEARCH_ROUNDS)
        medians = dict(zip(recordings, map(statistics.median, taken), strict=True))
        return [medians.get(number) for number in range(len(configs))]

    def _right_recording(self, config: KernelConfig) -> Recording | None:
        """Raises: DeviceLostError."""
        try:
            recording, correctness = self._captured(partial(attend_with, self._operands, config), OUR_LIMIT)
        except Exception as error:
            if not device_works(self._device):
                raise DeviceLostError(config.encode(), first_line(error)) from error
            return None
        return recording if correctness.right else None


def _mark(results: Sequence[PeerResult], status: Status, reason: str) -> None:
    for result in results:
        result.status, result.reason = status, reason


def device_works(device: torch.device) -> bool:
    """Whether the CUDA context is still good: errors of kernels stick to it. What a launch that was refused left behind
    is no such error: whoever asks next is told of it, once."""
    return _computes(device) or _computes(device)


def _computes(device: torch.device) -> bool:
    try:
        torch.zeros(1, device=device).add_(1).item()
        torch.cuda.synchronize(device)
    except Exception:
        return False
    return True
