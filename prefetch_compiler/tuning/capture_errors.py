"""What can go wrong while sites are captured, written or read. Each message names the value and the fix."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import KVPrefetchError


class UnknownPresetError(KVPrefetchError, ValueError):
    """A preset that does not exist."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown preset {name!r}; there are {', '.join(known)}.")


class NothingCapturedError(KVPrefetchError):
    """A model without any attention site that could be tuned."""

    def __init__(self, model: str, reasons: Iterable[str]) -> None:
        why = "; ".join(dict.fromkeys(reasons)) or "its decode step calls no scaled_dot_product_attention"
        super().__init__(f"no attention site of {model!r} would be lowered, so there is nothing to tune: {why}.")


class SitesError(KVPrefetchError, ValueError):
    """Base of what reading and writing files of sites raises."""


class MissingSitesError(SitesError):
    """There is no such file, or it cannot be read."""

    def __init__(self, path: object, cause: OSError) -> None:
        reason = cause.strerror or str(cause)
        super().__init__(f"{path}: {reason}; write a file of sites with `kvprefetch capture MODEL --out {path}`.")


class CorruptSitesError(SitesError):
    """A file that is not what `kvprefetch capture` writes."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path} is no file of sites: {problem}; write one with `kvprefetch capture MODEL`.")


class SitesVersionError(SitesError):
    """A file of sites of another version."""

    def __init__(self, path: object, version: object, supported: int) -> None:
        super().__init__(
            f"{path} has version {version!r}, and this kvprefetch reads version {supported}; capture the model again."
        )


class SitesNotWrittenError(SitesError):
    """The file cannot be written."""

    def __init__(self, path: object, cause: OSError) -> None:
        super().__init__(f"{path} cannot be written: {cause.strerror or cause}; name another file with --out.")
