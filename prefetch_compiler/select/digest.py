"""selection_digest(): one value for all that selection depends on, to compare between processes.

Ranks of one job must lower a graph alike. Equal digests mean that they do: the same device, the same records in effect,
the same kernels and the same options. Where files lie, when they were written and in which order they were read does
not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch

from ..database.canonical import record_bytes
from ..database.device_identity import identity_of
from ..database.overlay import Overlays, load
from ..database.template_hash import whole_hashes
from ..device import DeviceProfile, current_device, profile
from ..options import split_options
from .candidates import candidates_for, triton_minor


def selection_digest(options: Mapping[str, Any] | None = None, device: torch.device | str | None = None) -> str:
    """Hex SHA-256 over what selection depends on: device profile, records in effect for it, templates, versions of this
    package and of Triton, and the options that matter. Equal on every rank whose inputs are equal.

    Args:
        options: as given to torch.compile; Inductor's are ignored.
        device: the present GPU by default. For a CPU, outside the interpreter, nothing is selected from any record.

    Raises:
        UnknownOptionError, InvalidOptionError: a wrong option of ours.
        DatabaseError: under ``kvprefetch.strict``, a database that cannot be used.
    """
    ours, _ = split_options(options)
    databases = load(ours.tuning_db, strict=ours.strict)
    target = current_device() if device is None else torch.device(device)
    try:
        described: DeviceProfile | None = profile(target)
    except ValueError:
        described = None
    return digest_of(
        described,
        databases,
        allow_unmeasured=ours.allow_unmeasured,
        deterministic=ours.deterministic,
        strict=ours.strict,
    )


@lru_cache(maxsize=32)
def digest_of(
    described: DeviceProfile | None,
    databases: Overlays,
    *,
    allow_unmeasured: bool = False,
    deterministic: bool = False,
    strict: bool = False,
) -> str:
    """The digest for one device; None where there is none to lower for."""
    from .. import __version__

    head = {
        "device": None if described is None else asdict(described),
        "templates": whole_hashes(),
        "kvprefetch": __version__,
        "triton": triton_minor(),
        "options": {"allow_unmeasured": allow_unmeasured, "deterministic": deterministic, "strict": strict},
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for line in [] if described is None else _records(described, databases):
        digest.update(len(line).to_bytes(8, "big") + line)
    return digest.hexdigest()


def _records(described: DeviceProfile, databases: Overlays) -> list[bytes]:
    """What is in effect, in an order that depends on content alone. The place of a record among those of its key is
    part of its content: it says which is tried first."""
    candidates = candidates_for(identity_of(described), databases)
    lines = []
    for of_kind in (*candidates.own.values(), *candidates.donors.values()):
        for alike in of_kind.values():
            for place, candidate in enumerate(alike):
                device = json.dumps(asdict(candidate.device), sort_keys=True)
                lines.append(f"{device} {place} ".encode() + record_bytes(candidate.record))
    return sorted(lines)
