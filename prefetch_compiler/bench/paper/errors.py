"""What can be wrong with a run of ``bench paper`` that was asked for."""

from __future__ import annotations

from ...errors import KVPrefetchError


class NoPaperGpuError(KVPrefetchError):
    """A measurement was asked for where there is no GPU, or where Triton interprets its kernels."""

    def __init__(self) -> None:
        super().__init__(
            "bench paper measures on a GPU, and torch sees none here (or TRITON_INTERPRET=1 is set); --dry-run lists "
            "the cases and their bytes, --from FILE shows a run that was kept."
        )


class NoBulkPrefetchError(KVPrefetchError):
    """A GPU without the instruction that all of this is about."""

    def __init__(self, device: str) -> None:
        super().__init__(f"bench paper needs cp.async.bulk.prefetch.L2, which is there from sm_90 on, not on {device}.")


class CaseTooLargeError(KVPrefetchError):
    """The caches of a case do not fit the device."""

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(f"needs {needed_bytes / 1e9:.1f} GB and {free_bytes / 1e9:.1f} GB are free")


class WrongOutputError(KVPrefetchError):
    """A kernel that is not timed, because it does not compute attention."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"wrong result: {problem}")


class InvalidRunFileError(KVPrefetchError, ValueError):
    """A file that holds no run of this benchmark."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: no run of bench paper: {problem}; `kvprefetch bench paper --out FILE` makes one.")


class NcuOutputError(KVPrefetchError, ValueError):
    """What Nsight Compute printed is not the table that was asked for."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"ncu's output cannot be read: {problem}")
