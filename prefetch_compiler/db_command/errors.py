"""What can be wrong with a `kvprefetch db` command."""

from __future__ import annotations

from ..database.errors import DatabaseError, describe
from ..database.record import DeviceIdentity


class UnknownDeviceError(DatabaseError):
    """A database of a GPU whose limits are not known here."""

    def __init__(self, source: object, device: DeviceIdentity) -> None:
        super().__init__(
            f"{source}: the limits of {describe(device)} are not known here, so its configurations cannot be checked; "
            "verify it on that GPU."
        )


class NoMatchingGpuError(DatabaseError):
    """Timing was asked for where the database's GPU is not."""

    def __init__(self, source: object, device: DeviceIdentity) -> None:
        super().__init__(
            f"{source}: it is a database of {describe(device)}, which is not here; leave out --timing, or run it there."
        )


class ReportNotWrittenError(DatabaseError):
    """The report of a verification cannot be kept where it was wanted."""

    def __init__(self, report: object, cause: object) -> None:
        super().__init__(f"{report}: the report cannot be written ({cause}); name another --report.")
