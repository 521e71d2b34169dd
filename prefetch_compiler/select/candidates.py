"""The records that one device may use, in the order in which lookup tries them. Built once for a set of databases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..database.device_identity import same_family
from ..database.key import TuningKey
from ..database.merge import evidence_rank
from ..database.overlay import Overlays
from ..database.record import DeviceIdentity, TuningRecord
from ..database.template_hash import present_hash

# A key without its batch and capacity buckets, and the template.
Kind = tuple[object, ...]
# Batch and capacity bucket.
Sizes = tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A record that lookup may try. ``stale`` says what about it is out of date, and is empty where nothing is;
    ``layer`` is the overlay that it comes from, 0 the highest."""

    record: TuningRecord
    device: DeviceIdentity
    stale: str
    layer: int


BySizes = dict[Sizes, tuple[Candidate, ...]]


@dataclass(frozen=True)
class Candidates:
    """``own`` are the device's, ``donors`` those of other GPU models of its family that are declared for it. Each is in
    the order of preference."""

    own: Mapping[Kind, BySizes]
    donors: Mapping[Kind, BySizes]


def kind_of(key: TuningKey, template: str) -> Kind:
    """What records must share with a site to be tried for it: everything but batch and capacity."""
    return (
        template, key.dtype, key.kv_dtype, key.group, key.kv_heads, key.head_dim, key.value_dim, key.q_len_bucket,
        key.layout, key.alignment, key.mask, key.mask_dtype, key.features,
    )  # fmt: skip


@lru_cache(maxsize=32)
def candidates_for(device: DeviceIdentity, overlays: Overlays) -> Candidates:
    """The records of ``overlays`` that ``device`` may use, with the present templates and Triton."""
    own, donors = [], []
    for layer, databases in enumerate(overlays.layers):
        for database in databases:
            if database.device == device:
                own += _of(database.device, database.records, layer)
            elif database.family_fallback and same_family(database.device, device):
                donors += _of(database.device, database.records, layer)
    return Candidates(_arranged(own, device), _arranged(donors, device))


def _of(device: DeviceIdentity, records: Iterable[TuningRecord], layer: int) -> list[Candidate]:
    """One for each record of a template that is here."""
    return [
        Candidate(record, device, why_stale(record), layer)
        for record in records
        if present_hash(record.evidence.toolchain.template, record.key, record.config) is not None
    ]


def why_stale(record: TuningRecord) -> str:
    """What the record was tuned with and is not here; empty for a fresh one."""
    toolchain = record.evidence.toolchain
    reasons = []
    if toolchain.triton_minor != triton_minor():
        reasons.append(f"Triton {toolchain.triton_minor}, here is {triton_minor() or 'none'}")
    present = present_hash(toolchain.template, record.key, record.config) or "none"
    if toolchain.template_hash != present:
        reasons.append(f"other sources of {toolchain.template} ({toolchain.template_hash[:8]}, here {present[:8]})")
    return "stale: tuned with " + " and ".join(reasons) if reasons else ""


@lru_cache(maxsize=1)
def triton_minor() -> str:
    """``3.6`` of ``3.6.0``; empty without Triton."""
    try:
        import triton
    except ImportError:
        return ""
    return ".".join(triton.__version__.split(".")[:2])


def _arranged(found: list[Candidate], device: DeviceIdentity) -> dict[Kind, BySizes]:
    """By kind and sizes. Of records of one identity those of the highest layer stay, and of these the better evidenced;
    one that was not measured does not displace one that was."""
    groups: dict[Kind, dict[Sizes, list[Candidate]]] = {}
    for candidate in found:
        key, template = candidate.record.key, candidate.record.evidence.toolchain.template
        sizes = key.batch_bucket, key.capacity_bucket
        groups.setdefault(kind_of(key, template), {}).setdefault(sizes, []).append(candidate)
    return {
        kind: {sizes: _ordered(candidates, device) for sizes, candidates in of_kind.items()}
        for kind, of_kind in groups.items()
    }


def _ordered(candidates: list[Candidate], device: DeviceIdentity) -> tuple[Candidate, ...]:
    """The order of preference: fresh, from the nearest GPU model, from the highest layer, best evidenced."""
    if len(candidates) == 1:
        return tuple(candidates)

    def nearness(candidate: Candidate) -> tuple[object, ...]:
        donor = candidate.device
        return abs(donor.sm_count - device.sm_count), donor.name, donor.sm_count

    candidates = sorted(candidates, key=lambda one: evidence_rank(one.record), reverse=True)
    candidates.sort(key=lambda one: (bool(one.stale), nearness(one), one.layer))
    first: dict[object, Candidate] = {}
    for candidate in candidates:
        first.setdefault((candidate.record.identity, candidate.record.measured, candidate.device), candidate)
    return tuple(first.values())
