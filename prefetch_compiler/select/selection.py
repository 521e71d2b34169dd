"""Selection: spec + device → config, with the verdict that says how it was chosen. Deterministic; never measures."""

from __future__ import annotations

from dataclasses import dataclass

from prefetch_compiler.templates.manifest import TEMPLATES, Template

from ..config import KernelConfig
from ..device import DeviceProfile
from ..errors import Refused
from ..report import Verdict
from ..spec import AttentionSpec
from .heuristic import choose


@dataclass(frozen=True)
class Selection:
    """A template, a config for it, and how they were chosen."""

    template: Template
    config: KernelConfig
    verdict: Verdict
    reason: str


def select(spec: AttentionSpec, profile: DeviceProfile) -> Selection:
    """Choose for ``spec`` on ``profile``.

    Raises:
        Refused: no template covers the spec.
        InadmissibleConfigError: the device cannot run any config of it.
    """
    refusals = []
    for template in TEMPLATES:
        refusal = template.refusal(spec)
        if refusal is None:
            reason = f"heuristic for {profile.name}"
            return Selection(template, choose(spec, profile), Verdict.HEURISTIC, reason)
        refusals.append(f"{template.name}: {refusal}")
    raise Refused("; ".join(refusals))
