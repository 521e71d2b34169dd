"""What can be wrong with a tuning job that was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..config import KernelConfig
from ..database.key import TuningKey
from ..errors import KVPrefetchError


class InterpretedCompileError(KVPrefetchError):
    """Compiling for a GPU was asked for in a process that interprets kernels."""

    def __init__(self) -> None:
        super().__init__("TRITON_INTERPRET=1 is set, and interpreted kernels cannot be compiled; unset it.")


class InvalidStorageError(KVPrefetchError, ValueError):
    """A storage of studies that cannot be opened."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            f"--storage {without_password(where)}: {reason}. Give an SQLite file, a postgresql:// or mysql:// URL, "
            "a journal file (journal:PATH) or a proxy (grpc://HOST:PORT)."
        )


class StudyStorageError(KVPrefetchError):
    """A storage of studies that was open and failed: a full disk, or a server that went away."""

    def __init__(self, cause: BaseException) -> None:
        detail = " ".join(str(cause.__cause__ or cause).split())
        super().__init__(
            f"the storage of studies failed: {without_password(detail)}. Records that were published stay; "
            "make room, or bring the server back, and start the job again: it goes on where it stopped."
        )


class UnknownSamplerError(KVPrefetchError, ValueError):
    """A sampler that does not exist."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown sampler {name!r}; there are {', '.join(known)}.")


class MissingSamplerPackageError(KVPrefetchError):
    """A sampler whose package is not installed."""

    def __init__(self, name: str, package: str) -> None:
        super().__init__(f"sampler {name!r} needs the Python package {package}; install it, or take another sampler.")


class WrongResultError(KVPrefetchError):
    """A configuration whose results are wrong: it must not be used."""

    def __init__(self, config: KernelConfig, problem: str, reason: str) -> None:
        self.reason = f"{problem}: {reason}"
        super().__init__(f"config {config.encode()} is wrong on {problem}: {reason}.")


class KeyTooLargeError(KVPrefetchError):
    """A key whose cache does not fit into the device's memory."""

    def __init__(self, key: TuningKey, cache_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"{key.name}: one cache takes {cache_bytes / 2**30:.1f} GiB and {free_bytes / 2**30:.1f} GiB are free; "
            "tune a smaller batch or capacity."
        )


def without_password(url: str) -> str:
    """A storage's URL as it may be shown."""
    return re.sub(r"(://[^/:@]*):[^@/]*@", r"\1:***@", url)


class NoTuningGpuError(KVPrefetchError):
    """A measurement was asked for where there is no GPU."""

    def __init__(self) -> None:
        super().__init__(
            "tune measures on a GPU, and torch sees none here; "
            "--compile-only --target sm_90 ranks configurations by a model instead."
        )


class UnknownTargetError(KVPrefetchError, ValueError):
    """A target that is none, or that is named although something is to be measured."""

    def __init__(self, target: str, known: Iterable[int], compile_only: bool) -> None:
        names = ", ".join(f"sm_{arch}" for arch in sorted(known))
        rule = f"there are {names}" if compile_only else "what is measured runs on the GPU here; add --compile-only"
        super().__init__(f"--target {target}: {rule}.")


class NothingToTuneError(KVPrefetchError, ValueError):
    """A command line that names no key."""

    def __init__(self) -> None:
        super().__init__(
            "nothing to tune: give a file of sites (kvprefetch capture), --preset, --model, --spec or --records."
        )


class NothingStaleError(KVPrefetchError, ValueError):
    """Records to tune again, of which there are none."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"nothing to tune: {path} has no stale record; without --stale all its keys are tuned again.")


class InvalidSizesError(KVPrefetchError, ValueError):
    """A list of sizes that is none."""

    def __init__(self, option: str, value: str) -> None:
        super().__init__(f"{option} is {value!r}; expected positive integers, comma-separated, such as 1,16,64.")


class InvalidCacheError(KVPrefetchError, ValueError):
    """A quantised cache that the command line does not know."""

    def __init__(self, option: str, given: str, known: Iterable[str]) -> None:
        super().__init__(f"{option} {given!r} is not one of {', '.join(known)}.")
