"""The outcome of a run: what each variant did in each case, as data, with the ratios that the table shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .case import Case
from .ceiling import ReadCeiling
from .check import Errors
from .compile_time import CompileComparison
from .floor import StepBytes, floor_us
from .kernels import StepProfile
from .timing import StepTimes
from .variant import BASELINE, Variant


@dataclass(frozen=True)
class CompileFacts:
    """What compiling a variant for one (batch, capacity) came to.

    Attributes:
        first_call_s: seconds of the first call; compile caches may have been warm.
        graphs: FX graphs; more than one means that the model broke.
        cudagraph_skips: compiled functions that run without a CUDA graph although the mode asks for it.
        sites: attention sites met by our backend, and ``lowered`` of them; None for other backends.
    """

    first_call_s: float
    graphs: int
    cudagraph_skips: int
    sites: int | None = None
    lowered: int | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """Greedy decoding of a real model through the compiled step, one token per sequence and step."""

    tokens_per_s: float
    steps: int
    equals_eager: bool
    text: str


def failure_of(error: Exception) -> str:
    """What a result says of it: its kind and its first line, 300 characters at most."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


@dataclass
class VariantResult:
    """One variant in one case. ``failure`` says why there are no figures."""

    variant: Variant
    failure: str | None = None
    compiled: CompileFacts | None = None
    times: StepTimes | None = None
    errors: Errors | None = None
    profile: StepProfile | None = None
    generation: Generation | None = None

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in ("times", "errors", "profile")}
        plain = {name: getattr(self, name) for name in ("compiled", "generation")}
        return {
            "variant": self.variant.name,
            "backend": self.variant.backend,
            "attention": self.variant.attention,
            "failure": self.failure,
            **{name: None if part is None else vars(part) for name, part in plain.items()},
            **{name: None if part is None else part.to_dict() for name, part in parts.items()},
        }


@dataclass
class CaseResult:
    """One case: every variant, and the floor. ``ceiling`` is None where there is no GPU to measure it on.
    ``eager_float64_error`` is what the uncompiled model in the same dtype errs: the yardstick for the variants."""

    case: Case
    layers: int
    step_bytes: StepBytes
    ceiling: ReadCeiling | None
    variants: list[VariantResult]
    eager_float64_error: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def all_floor_us(self) -> float | None:
        """Floor of all parameters and valid KV, in microseconds."""
        return None if self.ceiling is None else floor_us(self.step_bytes.all_bytes, self.ceiling.bytes_per_us)

    @property
    def must_read_floor_us(self) -> float | None:
        """Floor of the bytes that the step must read, in microseconds."""
        return None if self.ceiling is None else floor_us(self.step_bytes.must_read_bytes, self.ceiling.bytes_per_us)

    def step_us(self, variant: Variant) -> float | None:
        """Median burst time per step of a variant; None if it failed or did not run."""
        for result in self.variants:
            if result.variant == variant and result.times is not None and result.failure is None:
                return result.times.burst.median_us
        return None

    def speedup(self, variant: Variant) -> float | None:
        """How many times faster than Inductor + SDPA, in this run."""
        baseline, own = self.step_us(BASELINE), self.step_us(variant)
        return None if baseline is None or own is None else baseline / own

    def over_floor(self, variant: Variant, floor: float | None) -> float | None:
        """Step time as a multiple of a floor in microseconds."""
        own = self.step_us(variant)
        return None if own is None or floor is None else own / floor

    def to_dict(self) -> dict[str, Any]:
        return {
            "case": vars(self.case),
            "layers": self.layers,
            "bytes": self.step_bytes.to_dict(),
            "ceiling": None if self.ceiling is None else self.ceiling.to_dict(),
            "floor_all_us": self.all_floor_us,
            "floor_must_read_us": self.must_read_floor_us,
            "eager_float64_error": self.eager_float64_error,
            "notes": self.notes,
            "variants": [{**result.to_dict(), **self._ratios(result.variant)} for result in self.variants],
        }

    def _ratios(self, variant: Variant) -> dict[str, float | None]:
        return {
            "speedup_over_inductor_sdpa": self.speedup(variant),
            "times_floor_all": self.over_floor(variant, self.all_floor_us),
            "times_floor_must_read": self.over_floor(variant, self.must_read_floor_us),
        }


@dataclass
class RunResult:
    """A whole run: the settings, the environment, and every case."""

    settings: dict[str, Any]
    environment: dict[str, str | None]
    cases: list[CaseResult] = field(default_factory=list)
    compile_time: CompileComparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, raw samples included."""
        return {
            "settings": self.settings,
            "environment": self.environment,
            "cases": [case.to_dict() for case in self.cases],
            "compile_time": None if self.compile_time is None else self.compile_time.to_dict(),
        }
