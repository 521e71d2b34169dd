"""The operator of an attention that a model calls by name: it selects a configuration for what it is given, and
launches it. Unlike ``decode_attention``, which a lowered graph calls with a configuration.

Configurations are selected at the first call with given shapes and kept. What no kernel serves is SDPA's.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor

from ..config import KernelConfig
from ..database.overlay import Overlays, load_or_none
from ..device import profile
from ..errors import InadmissibleConfigError, KernelLaunchError, Refused, SiteNotLoweredError
from ..options import DecodeOptions
from ..recognize.bounds import mask_bounds
from ..recognize.marker import fake_output, library
from ..select.selection import select
from ..spec import AttentionSpec, Storage
from .addresses import for_these_addresses
from .call import AttentionCall, check_call, spec_of
from .call_fallback import plain_attention
from .launch import launch_decode
from .quick_check import why_wrong

log = logging.getLogger("prefetch_compiler")

library.define(
    "called_attention(Tensor q, Tensor k, Tensor v, Tensor? k_scale, Tensor? v_scale, Tensor? mask, Tensor? bounds,"
    " Tensor? lengths, Tensor? table, Tensor? sink, bool is_causal, float scale, float? softcap, Tensor? k_zero,"
    " Tensor? v_zero, str storage, bool strict, bool deterministic, bool allow_unmeasured, str[] tuning_db) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order),
)

CALLED_ATTENTION = torch.ops.kvprefetch.called_attention.default

# What was said already: why specs are not served, and configurations that failed.
_said: set[str] = set()
_failed_configs: set[tuple[AttentionSpec, KernelConfig]] = set()


def attend(call: AttentionCall, options: DecodeOptions) -> Tensor:
    """Through the operator, so that whatever compiles or captures the caller sees one node.

    Raises:
        InvalidAttentionInputError: operands that do not fit one another.
        SiteNotLoweredError, KernelLaunchError, DatabaseError: under ``options.strict``.
    """
    # Traced, an exception is lost: then the operator's own check finds what is wrong.
    if not torch.compiler.is_compiling():
        check_call(call)
    if call.mask is not None and call.bounds is None:
        call = call._replace(bounds=mask_bounds(call.mask, call.kv_len))
    return CALLED_ATTENTION(  # type: ignore[no-any-return]
        *call, options.strict, options.deterministic, options.allow_unmeasured, list(options.tuning_db)
    )


def forget_selections() -> None:
    """Select anew at the next call: databases may have changed."""
    _selected.cache_clear()
    _databases.cache_clear()


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    mask: Tensor | None,
    bounds: Tensor | None,
    lengths: Tensor | None,
    table: Tensor | None,
    sink: Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    k_zero: Tensor | None,
    v_zero: Tensor | None,
    storage: str,
    strict: bool,
    deterministic: bool,
    allow_unmeasured: bool,
    tuning_db: list[str],
) -> Tensor:
    call = AttentionCall(
        q, k, v, k_scale, v_scale, mask, bounds, lengths, table, sink, is_causal, scale, softcap, k_zero, v_zero,
        storage,
    )  # fmt: skip
    options = DecodeOptions(strict, deterministic, allow_unmeasured, tuple(tuning_db))
    try:
        spec = spec_of(call)
        config = for_these_addresses(_selected(spec, q.device, options), k, v)
    except (Refused, InadmissibleConfigError) as refusal:
        if strict:
            raise SiteNotLoweredError(call.function, str(refusal)) from refusal
        _say_once(f"no kernel serves this {call.function}, SDPA does: {refusal}")
        return plain_attention(call)
    if (spec, config) not in _failed_configs:
        try:
            return _launched(call, config)
        except Exception as error:
            if strict:
                raise KernelLaunchError(config.encode(), error) from error
            _failed_configs.add((spec, config))
            _say_once(
                f"kernel {config.encode()} failed to launch, SDPA serves from now on: {type(error).__name__}: {error}"
            )
    return plain_attention(call)


for _backend in ("CPU", "CUDA"):
    library.impl("called_attention", _run, _backend)


@torch.library.impl(library, "called_attention", "Meta")
def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    mask: Tensor | None,
    bounds: Tensor | None,
    lengths: Tensor | None,
    table: Tensor | None,
    sink: Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    k_zero: Tensor | None,
    v_zero: Tensor | None,
    storage: str,
    strict: bool,
    deterministic: bool,
    allow_unmeasured: bool,
    tuning_db: list[str],
) -> Tensor:
    # Here and not only before the call: Dynamo reports what is raised here in our words.
    check_call(
        AttentionCall(
            q, k, v, k_scale, v_scale, mask, bounds, lengths, table, sink, is_causal, scale, softcap, k_zero, v_zero,
            storage,
        )
    )  # fmt: skip
    return fake_output(q, Storage.decode(storage).columns(v.shape[3]), True)


def _launched(call: AttentionCall, config: KernelConfig) -> Tensor:
    # The kernels know the sizes of these alone, and not their strides.
    lengths, sink = (None if given is None else given.contiguous() for given in (call.lengths, call.sink))
    return launch_decode(
        call.q, call.k, call.v, call.expanded_mask(), call.bounds, is_causal=call.is_causal, scale=call.scale,
        heads_first=True, config=config, k_scale=call.k_scale, v_scale=call.v_scale, lengths=lengths, table=call.table,
        softcap=call.softcap, sink=sink, k_zero=call.k_zero, v_zero=call.v_zero, storage=call.stored_as,
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
