"""A CUDA graph of some launches: run as deployed, one right after the other, whatever Python takes to issue them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch


def graph_of(work: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """``work`` captured, once it has run, and replayed once. Without ``torch.cuda.graph``, which collects garbage
    first: tens of milliseconds a trial."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        work()
        stream.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            # What broke a capture is raised again, as something less telling, where the capture ends.
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph.replay()
    torch.cuda.synchronize(device)
    return graph
