"""Graphs as files, on request: as Dynamo captured them, functional before our pass and after it, and their sites.

They go into the folder of the option ``kvprefetch.dump_graphs``, or, where TORCH_COMPILE_DEBUG=1 makes torch write
debug files of its own, beside these. For graph 3 of process 417::

    0003-pid417-1-dynamo.py        as captured, before marking; 1-export.py where torch.export captured it
    0003-pid417-2-functional.py    after AOTAutograd: what our pass is given
    0003-pid417-3-lowered.py       what our pass makes of it, for Inductor
    0003-pid417-4-sites.json       the report on its sites

Graphs are numbered in the order of compilation. No file is ever overwritten: a name that is taken gets a number. The
second and the third are there only if the pass ran, and are numbered if it had to run again.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from .report import SiteReport

log = logging.getLogger("prefetch_compiler")

_numbers = itertools.count()


def dump_folder(option: str | None, inductor_options: Mapping[str, Any]) -> Path | None:
    """Where graphs are to go; None where nobody asked for them."""
    from torch._dynamo.utils import get_debug_dir
    from torch._inductor import config as inductor_config

    if option is not None:
        return Path(option)
    # What TORCH_COMPILE_DEBUG=1 sets, and options={"trace.enabled": True}.
    if inductor_options.get("trace.enabled", inductor_config.trace.enabled):
        return Path(get_debug_dir(), "kvprefetch")
    return None


class GraphDump:
    """The files of one compiled graph; none without a folder. Whatever goes wrong with them is one warning, and what is
    left of them is left out: no method raises."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._number, self._stem = 0, ""
        if folder is not None:
            self._attempt(self._begin, folder)

    def captured(self, module: GraphModule, by: str) -> None:
        """The graph as it was captured, by ``dynamo`` or by ``export``."""
        self._attempt(lambda: self._write(f"1-{by}.py", _readable(module.graph)))

    def functional(self, graph: Graph) -> None:
        """The graph before our pass."""
        self._attempt(lambda: self._write("2-functional.py", _readable(graph)))

    def lowered(self, graph: Graph) -> None:
        """The graph after our pass."""
        self._attempt(lambda: self._write("3-lowered.py", _readable(graph)))

    def sites(self, reports: Iterable[SiteReport]) -> None:
        """What became of the graph's sites."""

        def write() -> None:
            sites = [replace(report, graph=self._number).to_dict() for report in reports]
            plain = {"graph": self._number, "compile_id": _compile_id(), "sites": sites}
            self._write("4-sites.json", json.dumps(plain, indent=2) + "\n")

        self._attempt(write)

    def _begin(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._number = next(_numbers)
        self._stem = f"{self._number:04d}-pid{os.getpid()}"

    def _write(self, name: str, text: str) -> None:
        assert self._folder is not None
        for attempt in itertools.count(1):
            path = self._folder / f"{self._stem}{f'.{attempt}' if attempt > 1 else ''}-{name}"
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                continue
            return

    def _attempt(self, action: Any, *arguments: Any) -> None:
        if self._folder is None:
            return
        try:
            action(*arguments)
        except Exception as error:
            log.warning("graphs are not written to %s: %s: %s", self._folder, type(error).__name__, error)
            self._folder = None


NO_DUMP = GraphDump(None)


def _readable(graph: Graph) -> str:
    """Python code with the shape, dtype, strides and device of every value, and where in the model it comes from."""
    head = f"# graph compiled by the backend kvprefetch; compile id {_compile_id()}; torch {torch.__version__}\n"
    module = graph.owning_module
    if module is not None and module.graph is graph:
        text = module.print_readable(print_output=False, include_stride=True, include_device=True)
        return head + text.replace("class <lambda>(", "class GraphModule(")  # AOTAutograd's, which is no Python
    return head + graph.python_code("self", verbose=True, include_stride=True, include_device=True).src


def _compile_id() -> str:
    """Dynamo's number of the graph, such as ``0/1``, by which torch's own logs name it."""
    return str(torch._guards.CompileContext.current_compile_id())
