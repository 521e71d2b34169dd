"""What can be wrong with a tuning job that was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import KVPrefetchError


class InterpretedCompileError(KVPrefetchError):
    """Compiling for a GPU was asked for in a process that interprets kernels."""

    def __init__(self) -> None:
        super().__init__("TRITON_INTERPRET=1 is set, and interpreted kernels cannot be compiled; unset it.")


class InvalidStorageError(KVPrefetchError, ValueError):
    """A storage of studies that cannot be opened."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            f"--storage {_without_password(where)}: {reason}. Give an SQLite file, a postgresql:// or mysql:// URL, "
            "a journal file (journal:PATH) or a proxy (grpc://HOST:PORT)."
        )


class UnknownSamplerError(KVPrefetchError, ValueError):
    """A sampler that does not exist."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown sampler {name!r}; there are {', '.join(known)}.")


class MissingSamplerPackageError(KVPrefetchError):
    """A sampler whose package is not installed."""

    def __init__(self, name: str, package: str) -> None:
        super().__init__(f"sampler {name!r} needs the Python package {package}; install it, or take another sampler.")


def _without_password(url: str) -> str:
    return re.sub(r"(://[^/:@]*):[^@/]*@", r"\1:***@", url)
