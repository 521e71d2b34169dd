"""What can fail in `bench kernel` itself."""

from __future__ import annotations

from ...errors import KVPrefetchError


class NoReaderError(KVPrefetchError, RuntimeError):
    """No kernel that only reads could be captured, so that a case has no ceiling."""

    def __init__(self, case: str) -> None:
        super().__init__(f"{case}: no reading kernel ran, so there is no read ceiling; cases of 8 KB or more have one.")
