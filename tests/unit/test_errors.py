"""Errors: each names the offending value, and an unknown option names the nearest valid one."""

from __future__ import annotations

import pytest

from prefetch_compiler import errors

KNOWN = ["kvprefetch.strict", "kvprefetch.config", "kvprefetch.report"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("kvprefetch.strct", "kvprefetch.strict"),
        ("kvprefetch.Strict", "kvprefetch.strict"),
        ("kvprefetch.configs", "kvprefetch.config"),
        ("kvprefetch.repot", "kvprefetch.report"),
    ],
)
def test_an_unknown_option_names_the_nearest_one_and_all(typed: str, meant: str) -> None:
    message = str(errors.UnknownOptionError(typed, iter(KNOWN)))
    assert repr(typed) in message
    assert f"Did you mean {meant!r}?" in message
    assert all(option in message for option in KNOWN)


def test_an_unknown_option_with_nothing_known_still_reads_well() -> None:
    message = str(errors.UnknownOptionError("kvprefetch.x", []))
    assert "'kvprefetch.x'" in message
    assert "Did you mean" not in message


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (errors.InvalidOptionError("kvprefetch.strict", "no", "a bool"), ["'kvprefetch.strict'", "'no'", "a bool"]),
        (errors.InvalidConfigError("block_kv", 48, "a power"), ["KernelConfig.block_kv", "48", "a power"]),
        (errors.InadmissibleConfigError("b64", "no TMA here"), ["b64", "no TMA here"]),
        (errors.SiteNotLoweredError("layers.3", "q_len 17"), ["layers.3", "q_len 17", "'kvprefetch.strict': False"]),
        (errors.LoweringError("recognise", KeyError("k")), ["recognise", "KeyError", "'k'"]),
        (errors.KernelLaunchError("b64", RuntimeError("no memory")), ["b64", "RuntimeError", "no memory"]),
    ],
)
def test_a_message_names_its_values(error: Exception, parts: list[str]) -> None:
    for part in parts:
        assert part in str(error)


def test_a_refusal_keeps_its_reason_word_for_word() -> None:
    refused = errors.Refused("head_dim 300 is over 256")
    assert refused.reason == str(refused) == "head_dim 300 is over 256"


def test_every_error_can_be_caught_by_the_base() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(classes) > 5
    assert all(issubclass(c, errors.KVPrefetchError) for c in classes)


@pytest.mark.parametrize(
    "wrong_value", [errors.UnknownOptionError, errors.InvalidOptionError, errors.InvalidConfigError]
)
def test_a_wrong_value_is_a_value_error(wrong_value: type[Exception]) -> None:
    assert issubclass(wrong_value, ValueError)
