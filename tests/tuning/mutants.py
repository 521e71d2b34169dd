"""Copies of the templates with a bug sown into them, launched in the templates' place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefetch_compiler.templates.manifest import TEMPLATES

from prefetch_compiler import templates
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.lower.launch import calls_of
from prefetch_compiler.lower.specialise import DecodeTensors


@dataclass(frozen=True)
class Bug:
    """``old`` becomes ``new`` wherever it stands in the template's module."""

    module: str
    old: str
    new: str


@contextmanager
def mutated_templates(bugs: tuple[Bug, ...], folder: Path) -> Iterator[Launch]:
    """A launch of the templates with ``bugs``; of a mere copy without any. Sources stay in ``folder``."""
    name = f"mutant_{folder.name}".replace("-", "_")
    package = folder / name
    package.mkdir()
    (package / "__init__.py").touch()
    source_folder = Path(str(templates.__file__)).parent
    for path in source_folder.glob("[!_]*.py"):
        module, source = path.stem, path.read_text()
        for bug in bugs:
            if bug.module == module:
                assert bug.old in source, f"{module}.py has no {bug.old!r} any more"
                source = source.replace(bug.old, bug.new)
        (package / path.name).write_text(source)
    sys.path.insert(0, str(folder))
    try:
        entries = [entry.split(".") for template in TEMPLATES for entry in template.entries]
        yield Launch(
            {kernel: getattr(importlib.import_module(f"{name}.{module}"), kernel) for module, kernel in entries}
        )
    finally:
        sys.path.remove(str(folder))
        for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[loaded]


@dataclass(frozen=True)
class Launch:
    """``launch_kernels`` with these kernels, by name."""

    kernels: Mapping[str, Any]

    def __call__(
        self, tensors: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None, config: KernelConfig
    ) -> None:
        for call in calls_of(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config):
            replace(call, kernel=self.kernels[call.kernel.__name__]).launch()
