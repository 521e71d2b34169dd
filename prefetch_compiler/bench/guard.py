"""The guard: what is wrong with our own results, whatever their speed."""

from __future__ import annotations

import math

from .result import CaseResult, VariantResult

# Ours may err this many times what the uncompiled model in the same dtype errs against float64.
ERROR_FACTOR = 2.0


def problems(case: CaseResult) -> list[str]:
    """One line for each thing that must not be; empty when all is well. Peers are not judged."""
    found = [line for result in case.variants if result.variant.is_ours for line in _problems(case, result)]
    return [f"case {case.case}: {line}" for line in found]


def _problems(case: CaseResult, result: VariantResult) -> list[str]:
    if result.failure is not None:
        return [f"failed: {result.failure}"]
    return [*_lowering_problems(case, result), *_error_problems(case, result)]


def _lowering_problems(case: CaseResult, result: VariantResult) -> list[str]:
    facts = result.compiled
    if facts is None or facts.lowered == case.layers:
        return []
    reasons = "; ".join(facts.reasons) or "no reason given"
    return [f"{facts.lowered} of {case.layers} layers' attention lowered: {reasons}"]


def _error_problems(case: CaseResult, result: VariantResult) -> list[str]:
    errors = result.errors
    if errors is None:
        return ["not checked"]
    found = []
    if not errors.lengths_advanced:
        found.append("a layer's length did not grow by one")
    if not math.isfinite(errors.cache_eager):
        found.append("a key or value was not written")
    if not math.isfinite(errors.logits_eager):
        found.append("logits are not finite")
    allowed = case.eager_float64_error
    if errors.logits_float64 is not None and allowed is not None and errors.logits_float64 > ERROR_FACTOR * allowed:
        found.append(f"logits err {errors.logits_float64:.1e} against float64, eager {allowed:.1e}")
    return found
