"""What can go wrong before a model is explained. Each message names the value and the fix."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import KVPrefetchError

_HOW_TO_DESCRIBE = "describe another one as NAME:sm_ARCH:SMS, such as 'NVIDIA H100 80GB HBM3:sm_90:132'"


class UnknownGPUError(KVPrefetchError, ValueError):
    """A GPU that is not here, in no database, and not described."""

    def __init__(self, text: str, known: Iterable[str]) -> None:
        super().__init__(f"GPU {text!r} is not one of {', '.join(known)}: name one of these, or {_HOW_TO_DESCRIBE}")


class AmbiguousGPUError(KVPrefetchError, ValueError):
    """A name that is part of several GPUs' names."""

    def __init__(self, text: str, found: Iterable[str]) -> None:
        super().__init__(f"GPU {text!r} may be {' or '.join(found)}: give the whole name")


class UnknownArchitectureError(KVPrefetchError, ValueError):
    """A compute capability below those that configurations are known to compile for."""

    def __init__(self, arch: int, lowest: int) -> None:
        super().__init__(f"nothing is known of GPUs of architecture sm_{arch}: name one of sm_{lowest} or later")
