"""The operator of an attention that a model calls by name: it selects a configuration for what it is given, and
launches it. Unlike ``decode_attention``, which a lowered graph calls with a configuration.

Configurations are selected at the first call with given shapes and kept. What no kernel serves is SDPA's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..config import KernelConfig
from ..database.overlay import Overlays, load_or_none
from ..device import profile
from ..errors import (
    InadmissibleConfigError,
    KernelLaunchError,
    KVPrefetchError,
    LoweringError,
    Refused,
    SiteNotLoweredError,
)
from ..options import DecodeOptions
from ..recognize.bounds import mask_bounds
from ..recognize.marker import fake_output, library
from ..select.selection import select
from ..spec import AttentionSpec
from .addresses import for_these_addresses
from .call import AttentionCall, check_call, spec_of
from .call_fallback import plain_attention
from .launch import empty_lse, launch_decode
from .quick_check import why_wrong

log = logging.getLogger("prefetch_compiler")

_OPERANDS = (
    "(Tensor q, Tensor k, Tensor v, Tensor? k_scale, Tensor? v_scale, Tensor? mask, Tensor? bounds, Tensor? lengths,"
    " Tensor? table, Tensor? sink, bool is_causal, float scale, float? softcap, str function, Tensor? k_zero,"
    " Tensor? v_zero, str storage, bool strict, bool deterministic, bool allow_unmeasured, str[] tuning_db)"
)
for _name, _result in (("called_attention", "Tensor"), ("called_attention_lse", "(Tensor, Tensor)")):
    library.define(
        f"{_name}{_OPERANDS} -> {_result}",
        tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
    )

CALLED_ATTENTION = torch.ops.kvprefetch.called_attention.default
# The same, and the log-sum-exp of each row: float32 (batch, query_heads, q_len).
CALLED_ATTENTION_LSE = torch.ops.kvprefetch.called_attention_lse.default

# What was said already: why specs are not served, and configurations that failed.
_said: set[str] = set()
_failed_configs: set[tuple[AttentionSpec, KernelConfig]] = set()


def attend(call: AttentionCall, options: DecodeOptions) -> Tensor:
    """Through the operator, so that whatever compiles or captures the caller sees one node.

    Raises:
        InvalidAttentionInputError: operands that do not fit one another.
        SiteNotLoweredError, KernelLaunchError, DatabaseError: under ``options.strict``.
    """
    return CALLED_ATTENTION(*_arguments(call, options))  # type: ignore[no-any-return]


def attend_with_lse(call: AttentionCall, options: DecodeOptions) -> tuple[Tensor, Tensor]:
    """Likewise, with the log-sum-exp of each row."""
    return CALLED_ATTENTION_LSE(*_arguments(call, options))  # type: ignore[no-any-return]


def _arguments(call: AttentionCall, options: DecodeOptions) -> tuple[Any, ...]:
    # Traced, an exception is lost: then the operator's own check finds what is wrong.
    if not torch.compiler.is_compiling():
        check_call(call)
    if call.mask is not None and call.bounds is None:
        call = call._replace(bounds=mask_bounds(call.mask, call.kv_len))
    return *call, options.strict, options.deterministic, options.allow_unmeasured, list(options.tuning_db)


def forget_selections() -> None:
    """Select anew at the next call: databases may have changed."""
    _selected.cache_clear()
    _databases.cache_clear()


def _read(given: Sequence[Any]) -> tuple[AttentionCall, DecodeOptions]:
    """What ``_arguments`` made."""
    *operands, strict, deterministic, allow_unmeasured, tuning_db = given
    return AttentionCall(*operands), DecodeOptions(strict, deterministic, allow_unmeasured, tuple(tuning_db))


def _run(*given: Any) -> Tensor:
    return _attended(*_read(given), lse=None)


def _run_with_lse(*given: Any) -> tuple[Tensor, Tensor]:
    call, options = _read(given)
    lse = empty_lse(call.q)
    return _attended(call, options, lse=lse), lse


def _attended(call: AttentionCall, options: DecodeOptions, *, lse: Tensor | None) -> Tensor:
    """The output. ``lse`` is written where it is given."""
    try:
        spec = replace(spec_of(call), lse=lse is not None)
        config = for_these_addresses(_selected(spec, call.q.device, options), call.k, call.v)
    except (Refused, InadmissibleConfigError) as refusal:
        if options.strict:
            raise SiteNotLoweredError(call.function, str(refusal)) from refusal
        _say_once(f"no kernel serves this {call.function}, SDPA does: {refusal}")
        return plain_attention(call, lse)
    except Exception as error:
        if options.strict:
            raise error if isinstance(error, KVPrefetchError) else LoweringError("selecting a kernel", error) from error
        _say_once(f"no kernel was selected for this {call.function}, SDPA serves: {type(error).__name__}: {error}")
        return plain_attention(call, lse)
    if (spec, config) not in _failed_configs:
        try:
            return _launched(call, config, lse)
        except Exception as error:
            if options.strict:
                raise KernelLaunchError(config.encode(), error) from error
            _failed_configs.add((spec, config))
            _say_once(
                f"kernel {config.encode()} failed to launch, SDPA serves from now on: {type(error).__name__}: {error}"
            )
    return plain_attention(call, lse)


for _backend in ("CPU", "CUDA"):
    library.impl("called_attention", _run, _backend)
    library.impl("called_attention_lse", _run_with_lse, _backend)


def _fake(*given: Any) -> Tensor:
    # Here and not only before the call: Dynamo reports what is raised here in our words.
    call, _ = _read(given)
    check_call(call)
    return fake_output(call.q, call.stored_as.columns(call.v.shape[3]), True)


def _fake_with_lse(*given: Any) -> tuple[Tensor, Tensor]:
    return _fake(*given), empty_lse(_read(given)[0].q)


library.impl("called_attention", _fake, "Meta")
library.impl("called_attention_lse", _fake_with_lse, "Meta")


def _launched(call: AttentionCall, config: KernelConfig, lse: Tensor | None) -> Tensor:
    # The kernels know the sizes of these alone, and not their strides.
    lengths, sink = (None if given is None else given.contiguous() for given in (call.lengths, call.sink))
    return launch_decode(
        call.q, call.k, call.v, call.expanded_mask(), call.bounds, is_causal=call.is_causal, scale=call.scale,
        heads_first=True, config=config, k_scale=call.k_scale, v_scale=call.v_scale, lengths=lengths, table=call.table,
        softcap=call.softcap, sink=sink, lse=lse, k_zero=call.k_zero, v_zero=call.v_zero, storage=call.stored_as,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _selected(spec: AttentionSpec, device: torch.device, options: DecodeOptions) -> KernelConfig:
    def objection(config: KernelConfig, stale: str) -> str | None:
        wrong = why_wrong(spec, config, device) if stale and options.strict else None
        return None if wrong is None else f"{stale}, and {wrong}"

    try:
        here = profile(device)
    except ValueError as error:
        raise Refused(str(error)) from error
    return select(
        spec,
        here,
        _databases(options.tuning_db, options.strict),
        allow_unmeasured=options.allow_unmeasured,
        deterministic=options.deterministic,
        objection=objection,
    ).config


@lru_cache(maxsize=8)
def _databases(tuning_db: tuple[str, ...], strict: bool) -> Overlays:
    """As they are when the first attention is computed with these options."""
    return load_or_none(tuning_db, strict=strict)


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        log.warning("%s", text)
