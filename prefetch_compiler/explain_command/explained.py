"""Explain one decode step of a model: trace it without weights, and select configurations as serving on a GPU would."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..database import overlay
from ..demo.cache_kind import CacheKind
from ..demo.device_choice import DTYPES
from ..demo.errors import CapacityError, UnknownDtypeError
from ..device import DeviceProfile
from ..errors import InadmissibleConfigError, InvalidOptionError, Refused
from ..report import Report, SiteReport
from ..select.digest import digest_of
from ..select.selection import select
from ..spec import AttentionSpec, MaskKind
from ..tracing.decoders import FakeDecode, decoder_config
from ..tracing.fake_decode import TRACED_ATTENTION, TracedDecode, trace_model
from ..tracing.layer_cut import layer_number
from ..tuning.capture import configuration
from ..tuning.presets import PRESETS
from .gpu import choose_gpu

DEFAULT_HELD = 1000
DEFAULT_CAPACITY = 4096
# How configurations call the number of positions of their decoder; the first that is there counts.
_POSITIONS = ("max_target_positions", "max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class ExplainRequest:
    """What to explain. None is for what the model, or the machine, suggests.

    Attributes:
        model: a preset, ``smollm2``, a local folder, a .gguf file, a hub id, or a transformers configuration.
        gpu: as for ``choose_gpu``.
        attention: transformers' attention implementation.
        batch: sequences.
        capacity: keys that a static cache has room for.
        held: keys in the cache before the step.
        dtype: name of the model's and the cache's dtype.
        q_len: tokens of the step, of each sequence.
    """

    model: str | Any
    gpu: str | None = None
    attention: str | None = None
    cache: CacheKind = CacheKind.STATIC
    batch: int = 1
    capacity: int | None = None
    held: int | None = None
    dtype: str | None = None
    q_len: int = 1
    trust_remote_code: bool = False
    tuning_db: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Sizes that contradict each other whatever the model are told before it is looked for.
        if self.capacity is not None and self.held is not None:
            _require_room(self.cache, self.capacity, self.held, self.q_len)


@dataclass(frozen=True)
class ExplainedModel:
    """What was traced, for which GPU, and the report on it. ``remarks`` are about the model as a whole: why it has no
    sites, or what would make all of them faster."""

    model: str
    gpu: DeviceProfile
    step: FakeDecode
    decode: TracedDecode
    report: Report
    remarks: tuple[str, ...]

    def describe(self) -> str:
        """Two lines for people."""
        step = self.step
        queries = f"{step.q_len} token" + "s" * (step.q_len != 1)
        capacity = f" of {step.capacity}" if step.cache is CacheKind.STATIC else ""
        arch = f"sm_{self.gpu.arch}" if self.gpu.backend == "cuda" else self.gpu.backend
        return (
            f"{self.model}: {self.decode.architecture}, {_dtype_name(step.dtype)}, "
            f"attention '{self.decode.attention}', on {self.gpu.name} ({arch}, {self.gpu.sm_count} SMs)\n"
            f"one decode step: batch {step.batch}, {queries}, {step.cache.value} cache holding {step.held}{capacity}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        step = self.step
        return {
            "model": self.model,
            "architecture": self.decode.architecture,
            "gpu": asdict(self.gpu),
            "dtype": _dtype_name(step.dtype),
            "batch": step.batch,
            "q_len": step.q_len,
            "held": step.held,
            "capacity": step.capacity if step.cache is CacheKind.STATIC else None,
            "cache": step.cache.value,
            "attention": self.decode.attention,
            "remarks": list(self.remarks),
            "report": self.report.to_dict(),
        }


def explain_model(request: ExplainRequest) -> ExplainedModel:
    """Trace one decode step and select a configuration for each of its attention sites. Nothing of the model's size is
    allocated, and nothing is compiled or run.

    Raises:
        KVPrefetchError: the model, the GPU, or a size is missing, unknown or impossible; the message names the fix.
    """
    databases = overlay.load(request.tuning_db)
    gpu = choose_gpu(request.gpu, databases)
    name, config = configuration(request.model, request.trust_remote_code)
    config = decoder_config(config, name)
    step = _step(request, config)
    decode = trace_model(config, name, step)
    report = Report(graphs=len(decode.graphs), digest=digest_of(gpu, databases))
    report.sites = _in_order(decode)
    for site in report.sites:
        _select_for(site, gpu, databases)
        site.keys_read = None if site.spec is None else expected_keys_read(site.spec, step.held + step.q_len)
    return ExplainedModel(name, gpu, step, decode, report, tuple(_remarks(decode, step, report)))


def expected_keys_read(spec: AttentionSpec, held: int) -> float:
    """Keys that a sequence's attention reads when ``held`` keys of the cache are valid, the step's own included.

    Masks have no values here. One hides what a cache does not hold yet; a window is as long as its cache.
    """
    if spec.is_causal:
        return float(min(spec.kv_len, spec.q_len))
    return float(spec.kv_len if spec.mask is MaskKind.NONE else min(spec.kv_len, held))


def _step(request: ExplainRequest, config: Any) -> FakeDecode:
    """The step with its sizes filled in: a cache as long as usual, if the model has as many positions.

    Raises:
        UnknownDtypeError, CapacityError, InvalidOptionError: the values cannot be used, or not together.
    """
    text = config.get_text_config(decoder=True)
    capacity = request.capacity or min(DEFAULT_CAPACITY, _positions(request.model, text) or DEFAULT_CAPACITY)
    held = request.held or max(1, min(DEFAULT_HELD, capacity - request.q_len))
    _require_room(request.cache, capacity, held, request.q_len)
    if request.cache is CacheKind.DYNAMIC and held <= request.q_len:
        raise InvalidOptionError("--held", held, f"more keys than the {request.q_len} of a step")
    return FakeDecode(
        batch=request.batch,
        capacity=capacity,
        held=held,
        dtype=_dtype(request.dtype, text),
        cache=request.cache,
        attention=request.attention,
        q_len=request.q_len,
        trust_remote_code=request.trust_remote_code,
    )


def _positions(model: str | Any, config: Any) -> int | None:
    """How many positions the decoder has, where it is said."""
    if isinstance(model, str) and model in PRESETS:
        return PRESETS[model].positions
    return next((value for key in _POSITIONS if isinstance(value := getattr(config, key, None), int)), None)


def _require_room(cache: CacheKind, capacity: int, held: int, q_len: int) -> None:
    if cache is CacheKind.STATIC and held + q_len > capacity:
        raise CapacityError(capacity, held + q_len)


def _dtype(name: str | None, config: Any) -> torch.dtype:
    """The dtype called ``name``, by default the one that the model was saved in, or else bfloat16."""
    if name is None:
        saved: object = getattr(config, "dtype", None)
        return next((dtype for dtype in DTYPES.values() if dtype is saved), torch.bfloat16)
    if name not in DTYPES:
        raise UnknownDtypeError(name, DTYPES)
    return DTYPES[name]


def _in_order(decode: TracedDecode) -> list[SiteReport]:
    """Every site of the whole model, graph after graph and layer after layer."""
    everywhere = [replace(site, layer=layer) for site, layers in decode.in_whole_model() for layer in layers]
    everywhere.sort(key=lambda site: (site.graph, layer_number(site.layer)))
    return [replace(site, index=index) for index, site in enumerate(everywhere)]


def _select_for(site: SiteReport, gpu: DeviceProfile, databases: overlay.Overlays) -> None:
    if site.spec is None:
        return
    try:
        selection = select(site.spec, gpu, databases)
    except (Refused, InadmissibleConfigError) as refusal:
        site.reason = str(refusal)
        return
    site.verdict, site.reason = selection.verdict, selection.reason
    site.template, site.config = selection.template.name, selection.config
    site.record = None if selection.tuned_at is None else selection.tuned_at.name


def _remarks(decode: TracedDecode, step: FakeDecode, report: Report) -> Iterable[str]:
    fix = "set attn_implementation='sdpa'"
    if not decode.has_sdpa:
        fix = f"{decode.architecture} has no other in this version of transformers that is lowered"
    if decode.attention == "flex_attention":
        yield (
            "attention implementation 'flex_attention' makes its block masks from data, of which there are none here: "
            "print prefetch_compiler.explain(model, *inputs)" + (f", or {fix}" if decode.has_sdpa else "")
        )
    elif decode.attention not in TRACED_ATTENTION:
        yield f"attention implementation '{decode.attention}' calls kernels of its own, which are left alone: {fix}"
    elif not report.sites:
        if decode.attention == "eager":
            yield f"no attention was recognised in attention implementation 'eager': {fix}"
        else:
            yield "no attention was recognised in the decode step, so nothing of it would be lowered"
    if step.cache is CacheKind.DYNAMIC and report.lowered:
        yield (
            "a dynamic cache is copied whole at each step, and its growth keeps a step out of CUDA graphs: "
            "pass cache_implementation='static'"
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
