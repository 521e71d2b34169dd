"""What can be wrong with a benchmark that was asked for."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import KVPrefetchError


class NoGpuError(KVPrefetchError):
    """A measurement was asked for where there is no GPU."""

    def __init__(self, command: str = "bench e2e", instead: str = "--dry-run lists the cases and their bytes") -> None:
        super().__init__(f"{command} measures on a GPU, and torch sees none here; {instead}.")


class NoRoomError(KVPrefetchError, ValueError):
    """The steps of a case outgrow its cache."""

    def __init__(self, case: object, needed: int) -> None:
        super().__init__(f"case {case}: its steps fill the cache up to {needed} keys; take a larger capacity.")


class UnsupportedCacheError(KVPrefetchError, ValueError):
    """A model whose layers do not all keep every key."""

    def __init__(self, kinds: Iterable[str]) -> None:
        super().__init__(
            f"the model's cache layers are {', '.join(kinds)}; bench e2e needs StaticLayer in every layer."
        )


class ShortPromptError(KVPrefetchError, ValueError):
    """A prompt that cannot fill the cache as far as asked."""

    def __init__(self, length: int, needed: int) -> None:
        super().__init__(f"the prompt has {length} tokens; filling the cache needs {needed}.")


class CompileJobError(KVPrefetchError):
    """The process that timed a cold compile failed."""

    def __init__(self, exit_code: int, stderr: str) -> None:
        super().__init__(f"exit code {exit_code}: {stderr.strip()[-250:]}")


class AttentionNotSetError(KVPrefetchError):
    """A model whose attention implementation cannot be changed once it is made."""

    def __init__(self, model: str, asked: str, has: str) -> None:
        super().__init__(f"{model} keeps attn_implementation={has!r}; transformers cannot set {asked!r}.")


class UnknownArchitectureError(KVPrefetchError, ValueError):
    """A name that is not in the catalogue."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no architecture is called {name!r}; there are {', '.join(known)}.")


class InvalidTableError(KVPrefetchError, ValueError):
    """A file of recorded tables that is none."""

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: no recorded tables: {problem}; `kvprefetch bench search --record` makes them.")


class NothingToReplayError(KVPrefetchError, ValueError):
    """A comparison of samplers without a table."""

    def __init__(self) -> None:
        super().__init__("bench search replays recorded tables: give their file, or --record to measure some on a GPU.")


class InvalidResultError(KVPrefetchError, ValueError):
    """A file of results that is none."""

    def __init__(self, path: object, command: str, problem: str) -> None:
        super().__init__(f"{path}: no results of {command}: {problem}; `kvprefetch {command} --out FILE` writes them.")


class DeviceLostError(KVPrefetchError):
    """A kernel broke the CUDA context; nothing more can run in this process."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer} left the GPU unusable to this process: {reason}")


class UnknownGroupError(KVPrefetchError, ValueError):
    """A name that no group of numeric cases has in its own."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no group's name has {name!r} in it; there are {'; '.join(known)}.")
