"""Copies of the templates with a bug sown into them, launched in the templates' place."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from prefetch_compiler import templates
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.lower.specialise import DecodeTensors, decode_call, merge_call


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
        modules = [importlib.import_module(f"{name}.{kernel}") for kernel in ("split_kv_decode", "merge_splits")]
        yield Launch(*modules)
    finally:
        sys.path.remove(str(folder))
        for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[loaded]


@dataclass(frozen=True)
class Launch:
    """``launch_kernels`` with the kernels of these modules."""

    decode: ModuleType
    merge: ModuleType

    def __call__(
        self, tensors: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None, config: KernelConfig
    ) -> None:
        decode = decode_call(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config)
        replace(decode, kernel=self.decode.split_kv_decode).launch()
        merge = merge_call(tensors, is_causal=is_causal, softcap=softcap, config=config)
        if merge is not None:
            replace(merge, kernel=self.merge.merge_splits).launch()
