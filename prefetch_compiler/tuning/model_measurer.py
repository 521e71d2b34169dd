"""A Measurer that measures nothing: it compiles, and says what the model of ``resource_model`` makes of the result."""

from __future__ import annotations

from ..config import KernelConfig
from ..database.key import TuningKey
from ..database.record import FillTiming
from ..device import DeviceProfile
from .compile_pool import Compiler
from .protocol import Outcome, TrialFailure, TrialRequest, TrialResult, fills_of
from .resource_model import ceiling_us, limits_of, modelled_us

# A model that is right to a few percent at best must not replace the default for less.
MODEL_MIN_GAIN = 0.05
# Equal samples, so that the rule of acceptance sees a certain difference.
_ROUNDS = 16


class ModelMeasurer:
    """For the GPU that ``profile`` describes, which need not be present. Nothing is verified."""

    def __init__(self, profile: DeviceProfile, compiler: Compiler) -> None:
        self._profile, self._compiler = profile, compiler

    def trial(self, request: TrialRequest) -> Outcome:
        return self._model(request.key, request.config)

    def finals(self, key: TuningKey, configs: tuple[KernelConfig, ...], seed: int) -> tuple[Outcome, ...]:
        return tuple(self._model(key, config) for config in configs)

    def close(self) -> None:
        return

    def _model(self, key: TuningKey, config: KernelConfig) -> Outcome:
        compiled = self._compiler.submit(key, config).result()
        if isinstance(compiled, TrialFailure):
            return compiled
        spec, limits = key.spec(), limits_of(self._profile)
        fills = []
        for held in sorted({max(1, round(share * key.capacity_bucket)) for share in fills_of(key)}):
            kv_bytes = spec.kv_bytes_per_key * held
            time_us = modelled_us(spec, config, compiled, self._profile, held)
            fills.append(FillTiming(held, kv_bytes, time_us, ceiling_us(kv_bytes, limits)))
        samples = tuple((fill.median_us,) * _ROUNDS for fill in fills)
        return TrialResult(tuple(fills), samples, error=0.0)
