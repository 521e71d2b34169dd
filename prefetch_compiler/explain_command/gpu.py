"""Which GPU a model is explained for: a present one, one that a database has records of, or one that is described."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import torch

from ..database.device_identity import identity_of
from ..database.overlay import Overlays
from ..database.record import DeviceIdentity
from ..device import INTERPRETER, REFERENCE_DEVICES, DeviceProfile, current_device, profile
from .errors import AmbiguousGPUError, UnknownArchitectureError, UnknownGPUError

_ARCH = re.compile(r"(?:sm_?)?(\d{2,3})", re.IGNORECASE)
_DESCRIBED = re.compile(r"(?P<name>[^:]+):(?:sm_?)?(?P<arch>\d{2,3})(?::(?P<sms>\d+))?", re.IGNORECASE)
# What is assumed of an AMD GPU that is not here, as of one whose properties torch does not tell.
_HIP_SHARED_MEMORY_BYTES = 65_536


def choose_gpu(text: str | None, databases: Overlays) -> DeviceProfile:
    """The GPU that ``text`` names; by default the present one, else the first of the lowest database, which is the
    shipped one.

    Args:
        text: a GPU model's name or a part of it, in any case; ``sm_90``, for a common GPU of that architecture; or
            ``NAME:sm_ARCH`` or ``NAME:sm_ARCH:SMS``.

    Raises:
        UnknownGPUError, AmbiguousGPUError, UnknownArchitectureError: no GPU, or not one, is meant.
    """
    if text is None:
        return _default(databases)
    described = _DESCRIBED.fullmatch(text.strip())
    if described is not None:
        like = _of_arch(int(described["arch"]))
        arch, sms = int(described["arch"]), int(described["sms"] or like.sm_count)
        return replace(like, name=described["name"].strip(), arch=arch, sm_count=sms)
    arch_alone = _ARCH.fullmatch(text.strip())
    if arch_alone is not None:
        return _of_arch(int(arch_alone[1]))
    return _by_name(text, _known(databases))


def profile_of(identity: DeviceIdentity) -> DeviceProfile:
    """What selection needs to know of a GPU of which a database tells the identity: cache and shared memory are those
    of a common GPU of its architecture.

    Raises:
        UnknownArchitectureError: no such GPU is known.
    """
    if identity.backend == "interpreter":
        return INTERPRETER
    if identity.backend == "hip":
        return DeviceProfile(identity.name, "hip", identity.arch, identity.sm_count, 0, _HIP_SHARED_MEMORY_BYTES)
    return replace(_of_arch(identity.arch), name=identity.name, arch=identity.arch, sm_count=identity.sm_count)


def _default(databases: Overlays) -> DeviceProfile:
    if torch.cuda.is_available():
        return profile(current_device())
    lowest = databases.layers[-1] if databases.layers else ()
    identities = sorted((database.device for database in lowest), key=lambda device: device.name)
    return profile_of(identities[0]) if identities else REFERENCE_DEVICES[90]


def _of_arch(arch: int) -> DeviceProfile:
    """The reference GPU of the architecture, or of the nearest one before it."""
    before = [known for known in REFERENCE_DEVICES if known <= arch]
    if not before:
        raise UnknownArchitectureError(arch, min(REFERENCE_DEVICES))
    return REFERENCE_DEVICES[max(before)]


def _known(databases: Overlays) -> list[DeviceProfile]:
    """Every GPU that has a name here, those that are here first."""
    here = [profile(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    on_record = [profile_of(database.device) for layer in databases.layers for database in layer]
    found = {identity_of(gpu): gpu for gpu in reversed((*here, *on_record, *REFERENCE_DEVICES.values()))}
    return list(reversed(found.values()))


def _by_name(text: str, known: Iterable[DeviceProfile]) -> DeviceProfile:
    wanted = text.strip().casefold()
    by_name = {gpu.name: gpu for gpu in known}
    whole = [name for name in by_name if wanted in (name.casefold(), name.casefold().removeprefix("nvidia "))]
    found = whole or [name for name in by_name if wanted and wanted in name.casefold()]
    if not found:
        raise UnknownGPUError(text, by_name)
    if len(found) > 1:
        raise AmbiguousGPUError(text, found)
    return by_name[found[0]]
