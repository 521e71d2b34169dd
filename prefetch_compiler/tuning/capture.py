"""Capture: the tuning keys of a model, from its configuration alone. No weights, no GPU, nothing compiled.

A site's key follows from graphs that torch.compile captures on tensors without data, through the same marking and
recognition that serving goes through (``traced_sites``), so that what is captured is what serving will look up.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, TypeVar

import torch

from ..database.key import TuningKey, key_of
from ..demo.cache_kind import CacheKind
from ..demo.device_choice import DTYPES
from ..demo.errors import CapacityError, UnknownDtypeError
from ..report import SiteReport
from ..tracing.decoders import FakeDecode, decoder_config
from ..tracing.errors import NotTraceableError
from ..tracing.fake_decode import trace_model, without_data
from ..tracing.traced_sites import SiteTracer
from .capture_errors import NothingCapturedError

# Keys in the cache before the step: one, and as many as fill it, where a window makes a difference between the two.
_FEW = 1


@dataclass(frozen=True)
class CapturedSite:
    """Alike attention sites of one model: one kernel configuration serves them.

    Attributes:
        layers: how many sites of one decode step have this key.
        layer: path of one of them, as in ``model.layers.0.self_attn``.
    """

    key: TuningKey
    layers: int
    model: str
    layer: str

    @property
    def same(self) -> TuningKey:
        """Equal for sites that are one entry."""
        return self.key


@dataclass(frozen=True)
class LeftSite:
    """Sites of one model that the backend leaves to Inductor, and why; there is nothing to tune."""

    layers: int
    model: str
    layer: str
    reason: str

    @property
    def same(self) -> str:
        """Equal for sites that are one entry."""
        return self.reason


_SomeSite = TypeVar("_SomeSite", bound=CapturedSite | LeftSite)


@dataclass
class Capture:
    """All that one capture found, each key once."""

    model: str
    sites: list[CapturedSite] = field(default_factory=list)
    left: list[LeftSite] = field(default_factory=list)


def capture(
    model: str | Any,
    batches: Sequence[int],
    capacities: Sequence[int],
    dtypes: Sequence[str] = ("bfloat16",),
    *,
    cache: CacheKind | str = CacheKind.STATIC,
    attention: str = "sdpa",
    all_layers: bool = False,
    trust_remote_code: bool = False,
    done: Callable[[], None] = lambda: None,
) -> Capture:
    """Trace decode steps of every batch, capacity and dtype.

    Args:
        model: a preset, ``smollm2``, a local folder, a .gguf file, a hub id, or a transformers configuration.
        capacities: keys that a static cache has room for, or that a dynamic one holds.
        dtypes: of the model and its cache, by name.
        cache: Hugging Face's: preallocated, or growing.
        all_layers: trace every layer, instead of one of each kind.
        trust_remote_code: whether Python code that comes with the model may run.
        done: called after each of the ``len(batches) * len(capacities) * len(dtypes)`` points.

    Raises:
        ModelNotLoadedError, MissingExtraError, MissingBundledModelError, UnknownDtypeError, CapacityError: as named.
        SeveralTextConfigsError: it is not clear which part of the model decodes.
        NotTraceableError and others: as ``trace_model``.
    """
    elements = [_dtype(name) for name in dtypes]
    for capacity in capacities:
        if capacity <= _FEW + 1:
            raise CapacityError(capacity, _FEW + 2)
    kind = CacheKind(cache)
    name, config = configuration(model, trust_remote_code)
    config = decoder_config(config, name)
    found = Capture(name)
    for element, batch, capacity in product(elements, batches, capacities):
        for held in _held(config, capacity, kind):
            step = FakeDecode(batch, capacity, held, element, kind, attention, trust_remote_code=trust_remote_code)
            traced = trace_model(config, name, step, all_layers)
            _add(found, ((site, len(layers)) for site, layers in traced.in_whole_model()))
        done()
    return found


def capture_keys(
    model: str, batches: Sequence[int], capacities: Sequence[int], dtypes: Sequence[str] = ("bfloat16",)
) -> list[TuningKey]:
    """The keys of :func:`capture` with a static cache, each once.

    Raises:
        NothingCapturedError: no site of the model would be lowered. And as :func:`capture`.
    """
    found = capture(model, batches, capacities, dtypes)
    if not found.sites:
        raise NothingCapturedError(found.model, (site.reason for site in found.left))
    return [site.key for site in found.sites]


def capture_module(module: Callable[..., Any], *inputs: Any, name: str | None = None, **keywords: Any) -> Capture:
    """The sites of one call ``module(*inputs, **keywords)`` under torch.compile, for any module or function.

    Nothing is computed and nothing changed: the call is traced on shapes of the module's tensors and of the inputs,
    which may be on any device.

    Raises:
        NotTraceableError: the code does something that cannot be traced without data.
    """
    from torch._subclasses.fake_tensor import FakeCopyMode

    name = name or str(getattr(module, "__name__", type(module).__name__))
    tracer = SiteTracer()
    try:
        with without_data() as mode:
            with FakeCopyMode(mode):
                # In one go, so that tensors which the inputs share with the module stay shared.
                module, inputs, keywords = copy.deepcopy((module, inputs, keywords))
            torch.compile(module, backend=tracer)(*inputs, **keywords)
    except Exception as error:
        raise NotTraceableError(name, error) from error
    found = Capture(name)
    _add(found, ((site, 1) for graph in tracer.graphs for site in graph))
    return found


def configuration(model: str | Any, trust_remote_code: bool = False) -> tuple[str, Any]:
    """The model's name for people and its configuration; ``model`` is as for :func:`capture`.

    Raises:
        ModelNotLoadedError, MissingExtraError, MissingBundledModelError: as named.
        RemoteCodeError: its code comes with it, and is not trusted.
    """
    from ..demo.model_source import find_model, load_config, quiet_transformers
    from .presets import PRESETS, preset_config

    if not isinstance(model, str):
        return getattr(model, "name_or_path", "") or type(model).__name__, model
    source = None if model in PRESETS else find_model(model)
    quiet_transformers()
    return model, preset_config(model) if source is None else load_config(source, trust_remote_code)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UnknownDtypeError(name, DTYPES)
    return DTYPES[name]


def _held(config: Any, capacity: int, cache: CacheKind) -> list[int]:
    """Keys held before the step. Sliding layers that are full run other code than while they fill."""
    if cache is CacheKind.DYNAMIC:
        return [capacity - 1]
    window = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    return [_FEW, window + 1] if isinstance(window, int) and _FEW < window < capacity - 1 else [_FEW]


def _add(found: Capture, sites: Iterable[tuple[SiteReport, int]]) -> None:
    """Add one traced step's sites, those that decode, and the layers that each stands for. A key that other steps have
    too counts as often as in the step that has it most."""
    here = Capture(found.model)
    for site, layers in sites:
        if not site.decode:
            continue
        if site.spec is None:
            here.left.append(LeftSite(layers, found.model, site.layer, site.reason))
        else:
            here.sites.append(CapturedSite(key_of(site.spec), layers, found.model, site.layer))
    found.sites = _merged(found.sites, _merged([], here.sites, operator.add), max)
    found.left = _merged(found.left, _merged([], here.left, operator.add), max)


def _merged(known: list[_SomeSite], new: list[_SomeSite], count: Callable[[int, int], int]) -> list[_SomeSite]:
    """Each key, or each reason, once; ``count`` makes one number of layers of two."""
    found: dict[TuningKey | str, _SomeSite] = {}
    for site in (*known, *new):
        if site.same in found:
            first: _SomeSite = found[site.same]
            site = replace(first, layers=count(first.layers, site.layers))
        found[site.same] = site
    return list(found.values())
