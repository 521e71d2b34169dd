"""Decode steps of a Hugging Face model that has no data: parameters, cache and tokens are shapes only.

Fake tensors claim to lie on the CPU. Neither transformers nor the graph passes up to recognition ask for the device in
a way that changes a site.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..demo.cache_kind import CacheKind
from ..errors import KVPrefetchError
from ..report import SiteReport
from .decoders import Decoder, FakeDecode, build_decoder
from .errors import NotTraceableError
from .layer_cut import KeptLayer, cut_layers, every_layer, in_whole_model
from .traced_sites import SiteTracer

# After one step a dynamic cache has another length, which makes the length symbolic, as it stays from then on.
_STEPS = {CacheKind.STATIC: 1, CacheKind.DYNAMIC: 2}
# All others call kernels of their own, in which there is nothing to see, or cannot be traced without data.
TRACED_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class TracedDecode:
    """What the graphs of a decode step hold.

    Attributes:
        architecture: name of the model's class.
        attention: transformers' attention implementation in use.
        has_sdpa: whether the architecture could use ``sdpa``.
        layers: the layers that were traced, and which of the model's each stands for.
        graphs: the sites of each graph, in order; none where ``attention`` is not one of TRACED_ATTENTION.
    """

    architecture: str
    attention: str
    has_sdpa: bool
    layers: tuple[KeptLayer, ...]
    graphs: tuple[tuple[SiteReport, ...], ...]

    def in_whole_model(self) -> Iterator[tuple[SiteReport, tuple[str, ...]]]:
        """Each site, its layer named as in the whole model, and the names of all layers that it stands for."""
        return in_whole_model((site for graph in self.graphs for site in graph), self.layers)


def trace_model(config: Any, name: str, step: FakeDecode, all_layers: bool = False) -> TracedDecode:
    """The attention sites of the graphs that serve decode steps from then on: of one layer of each kind, and of all
    where fewer cannot be traced.

    Args:
        config: of the part of the model that decodes (``decoders.decoder_config``).
        all_layers: trace all of them anyway.

    Raises:
        KVPrefetchError: as :func:`trace_decode`.
    """
    if not all_layers:
        fewer, kept = cut_layers(config)
        try:
            return trace_decode(fewer, name, step, kept)
        except NotTraceableError:
            pass  # its layers may depend on one another in ways that its configuration does not list
    return trace_decode(config, name, step, every_layer(config))


def trace_decode(config: Any, name: str, step: FakeDecode, layers: Sequence[KeptLayer]) -> TracedDecode:
    """The attention sites of the graphs that serve decode steps of a model with ``layers``.

    Raises:
        ModelNotLoadedError, NoDecoderError, AttentionImplementationError, RemoteCodeError: as ``build_decoder``.
        NotTraceableError: the model's code does something that cannot be traced without data.
    """
    try:
        with without_data():
            decoder = build_decoder(config, name, step)
            architecture = type(decoder.model).__name__
            graphs = _graphs(decoder, step) if decoder.attention in TRACED_ATTENTION else []
    except KVPrefetchError:
        raise
    except Exception as error:
        raise NotTraceableError(name, error) from error
    numbered = (tuple(replace(site, graph=number) for site in graph) for number, graph in enumerate(graphs))
    return TracedDecode(architecture, decoder.attention, decoder.has_sdpa, tuple(layers), tuple(numbered))


def _graphs(decoder: Decoder, step: FakeDecode) -> list[list[SiteReport]]:
    tracer = SiteTracer()
    steps = _STEPS[step.cache]
    cache = decoder.new_cache()
    before = step.held - (steps - 1) * step.q_len
    decoder.model(**decoder.arguments(before), past_key_values=cache, use_cache=True)
    compiled: Callable[..., Any] = torch.compile(decoder.model, backend=tracer)
    for _ in range(steps):
        first = len(tracer.graphs)
        compiled(**decoder.arguments(step.q_len), past_key_values=cache, use_cache=True)
    return tracer.graphs[first:]


@contextmanager
def without_data() -> Iterator[FakeTensorMode]:
    """Tensors are shapes only, gradients off, and what torch.compile remembers is forgotten before and after."""
    torch._dynamo.reset()
    try:
        with (
            _quiet_dynamo(),
            warnings.catch_warnings(),
            FakeTensorMode(allow_non_fake_inputs=True) as mode,
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # about numerics and speed, of which there are none here
            yield mode
    finally:
        torch._dynamo.reset()


@contextmanager
def _quiet_dynamo() -> Iterator[None]:
    """No advice about graph breaks in a model that is only looked at, unless TORCH_LOGS asks for something."""
    log = logging.getLogger("torch._dynamo")
    level = log.level
    if not os.environ.get("TORCH_LOGS"):
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
