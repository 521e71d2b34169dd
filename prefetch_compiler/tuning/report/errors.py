"""What can go wrong with a report: one class per failure, each naming the fix."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import KVPrefetchError


class ReportSourceError(KVPrefetchError, ValueError):
    """What was named is neither a tuning database nor a storage of studies."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(
            f"{source}: {problem}. Name a tuning database (.json), a folder with one, or a storage of studies: "
            "an SQLite file, a postgresql:// or mysql:// URL, journal:PATH or grpc://HOST:PORT."
        )


class EmptyReportError(KVPrefetchError, ValueError):
    """There is nothing to show."""

    def __init__(self, sources: Iterable[str]) -> None:
        super().__init__(
            f"nothing to report in {', '.join(sources)}: no records and no studies. Fill it with `kvprefetch tune`."
        )


class ReportNotWrittenError(KVPrefetchError):
    """The page cannot be written."""

    def __init__(self, path: object, cause: OSError) -> None:
        super().__init__(f"{path} cannot be written: {cause.strerror or cause}; name another file with --out.")
