"""Compile what a search is about to measure over all CPU cores; launches then find the binaries in Triton's cache."""

from __future__ import annotations

from collections.abc import Sequence

from ...config import KernelConfig
from ...device import DeviceProfile
from ...spec import AttentionSpec
from ...tuning.compile_pool import CompilePool
from ...tuning.feasible import SPILL_LIMIT_BYTES, why_too_large
from ...tuning.protocol import TrialFailure


class CompileAhead:
    """Processes are started when they are first needed."""

    def __init__(self, profile: DeviceProfile) -> None:
        self._profile = profile
        self._pool: CompilePool | None = None

    def refusals(self, spec: AttentionSpec, configs: Sequence[KernelConfig]) -> list[str | None]:
        """For each configuration why it is not worth running, or None; compiled by the time that this returns."""
        if self._pool is None:
            self._pool = CompilePool(self._profile)
        pool = self._pool
        futures = [pool.submit_spec(spec, config) for config in configs]
        return [self._refusal(future.result()) for future in futures]

    def _refusal(self, outcome: object) -> str | None:
        if isinstance(outcome, TrialFailure):
            return f"{outcome.kind.value}: {outcome.detail}"
        assert isinstance(outcome, tuple)
        return why_too_large(outcome, self._profile, SPILL_LIMIT_BYTES)

    def close(self) -> None:
        """End every process."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
