"""Selection: spec + device + databases → config, with the verdict that says how it was chosen. Deterministic; never
measures, and reads no file: the databases are read before (``database.overlay``)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from prefetch_compiler.templates.manifest import TEMPLATES, Template

from ..config import KernelConfig
from ..database.key import TuningKey
from ..database.overlay import NO_DATABASES, Overlays
from ..device import DeviceProfile
from ..errors import Refused
from ..report import Verdict
from ..spec import AttentionSpec
from .heuristic import choose, choose_for_any_batch
from .lookup import Found, Missed, Objection, lookup

log = logging.getLogger(__name__)

# Records that were passed over, of which a reason tells.
_SHOWN = 2


@dataclass(frozen=True)
class Selection:
    """A template, a config for it, and how they were chosen; ``tuned_at`` is the key of the record that it comes from,
    None where it comes from none."""

    template: Template
    config: KernelConfig
    verdict: Verdict
    reason: str
    tuned_at: TuningKey | None = None


def select(
    spec: AttentionSpec,
    profile: DeviceProfile,
    databases: Overlays = NO_DATABASES,
    *,
    allow_unmeasured: bool = False,
    deterministic: bool = False,
    objection: Objection | None = None,
) -> Selection:
    """Choose for ``spec`` on ``profile``: what is on record, else the heuristic's.

    Args:
        allow_unmeasured: use records that were never measured where there is no other.
        deterministic: use no record, and nothing that depends on the batch.
        objection: the last word on every recorded configuration before it is used.

    Raises:
        Refused: no template covers the spec.
        InadmissibleConfigError: the device cannot run any config of it.
    """
    for template in TEMPLATES:
        if template.refusal(spec) is None:
            if deterministic:
                reason = f"the same for every batch (deterministic), heuristic for {profile.name}"
                return Selection(template, choose_for_any_batch(spec, profile), Verdict.HEURISTIC, reason)
            found = lookup(
                spec, profile, template.name, databases, allow_unmeasured=allow_unmeasured, objection=objection
            )
            if isinstance(found, Found):
                return Selection(template, found.config, found.verdict, found.reason, found.record.key)
            chosen = choose(spec, profile)
            log.debug("no record for %s: heuristic for %s, %s", spec.describe(), profile.name, chosen.encode())
            return Selection(template, chosen, Verdict.HEURISTIC, _heuristic_reason(profile, found))
    raise Refused(why_not_covered(spec) or "")


def why_not_covered(spec: AttentionSpec) -> str | None:
    """Why no template serves it on any device, or None."""
    refusals = {template.name: template.refusal(spec) for template in TEMPLATES}
    if None in refusals.values():
        return None
    return "; ".join(f"{name}: {refusal}" for name, refusal in refusals.items())


def _heuristic_reason(profile: DeviceProfile, missed: Missed) -> str:
    reason = f"heuristic for {profile.name}"
    if not missed.passed_over:
        return reason
    shown = list(missed.passed_over[:_SHOWN])
    if len(missed.passed_over) > _SHOWN:
        shown.append(f"{len(missed.passed_over) - _SHOWN} more")
    return f"{reason}; on record but not used: {'; '.join(shown)}"
