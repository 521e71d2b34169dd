"""Which GPU model a device is, and which models may stand in for one another."""

from __future__ import annotations

from ..device import DeviceProfile
from .record import DeviceIdentity


def identity_of(profile: DeviceProfile) -> DeviceIdentity:
    """The GPU model that ``profile`` describes."""
    return DeviceIdentity(profile.name, profile.backend, profile.arch, profile.sm_count)


def same_family(one: DeviceIdentity, other: DeviceIdentity) -> bool:
    """Whether kernels for one are kernels for the other: the same backend and compute capability, as an H100 and an
    H200 have. Where no architecture is known (0) there are no families."""
    return one.arch > 0 and (one.backend, one.arch) == (other.backend, other.arch)
