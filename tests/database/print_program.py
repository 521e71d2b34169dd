"""``python print_program.py FOLDER``: digests of the programs of FOLDER's ``main.kernel``, with and without its
features. Runs on a Python that has none of the dependencies, so the packages on the way are empty."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]

for name in ("prefetch_compiler", "prefetch_compiler.database", "prefetch_compiler.database.errors"):
    package = ModuleType(name)
    package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
    sys.modules[name] = package
sys.modules["prefetch_compiler.database.errors"].TemplateSourceError = Exception  # type: ignore[attr-defined]

from prefetch_compiler.database.kernel_source.modules import Sources  # noqa: E402
from prefetch_compiler.database.kernel_source.program import Program  # noqa: E402

NEITHER = {"SOFTCAP": False, "cap": None, "SINKS": False, "sinks_ptr": None, "sink_stride": None}
for absent in ({}, NEITHER):
    text = Program(Sources(Path(sys.argv[1])), ("main.kernel",), absent).text()
    print(hashlib.sha256(text.encode()).hexdigest())
