"""One class per failure. Each message names the offending value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KVPrefetchError(Exception):
    """Base of every error this package raises on purpose."""


class UnknownOptionError(KVPrefetchError, ValueError):
    """An option in the ``kvprefetch.`` namespace that does not exist."""

    def __init__(self, option: str, known: Iterable[str]) -> None:
        known = sorted(known)
        nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.0)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        super().__init__(f"unknown option {option!r}.{hint} Valid options: {', '.join(known)}.")


class InvalidOptionError(KVPrefetchError, ValueError):
    """An option of ours that exists, with a value it cannot take."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(f"option {option!r} is {value!r}; expected {expected}.")


class InvalidConfigError(KVPrefetchError, ValueError):
    """A KernelConfig that breaks its own invariants, whatever the device."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"KernelConfig.{field} is {value!r}; it must be {rule}.")


class InadmissibleConfigError(KVPrefetchError, ValueError):
    """A valid KernelConfig that this spec or this device cannot run."""

    def __init__(self, config: object, reason: str) -> None:
        super().__init__(f"config {config} cannot be used here: {reason}.")


class Refused(KVPrefetchError):
    """A site that is not lowered. ``reason`` goes to the report word for word."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class SiteNotLoweredError(KVPrefetchError):
    """``kvprefetch.strict`` is on and a site was left untouched."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(
            f"strict: attention site {site} was not lowered: {reason}. "
            "Change the model as the reason says, or set options={'kvprefetch.strict': False}, or of a call by name "
            "DecodeOptions(strict=False)."
        )


class LoweringError(KVPrefetchError):
    """``kvprefetch.strict`` is on and a stage of the pass failed."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(f"strict: {stage} failed with {type(cause).__name__}: {cause}")


class KernelLaunchError(KVPrefetchError):
    """``kvprefetch.strict`` is on and a kernel could not be launched."""

    def __init__(self, config: object, cause: BaseException) -> None:
        super().__init__(f"strict: kernel {config} failed to launch: {type(cause).__name__}: {cause}")


class InvalidKeyNameError(KVPrefetchError, ValueError):
    """A text that names no tuning key."""

    def __init__(self, name: str, reason: str) -> None:
        example = "bfloat16 32q/8kv d128 q1 b16 s4096 bhsd-tma bool"
        super().__init__(f"{name!r} names no tuning key ({reason}); write it like {example!r}.")


class InvalidAttentionInputError(KVPrefetchError, ValueError):
    """Arguments of an attention that is called by name that do not fit one another."""

    def __init__(self, function: str, argument: str, given: object, rule: str) -> None:
        super().__init__(f"{function}: {argument} is {given}; it must be {rule}.")
