"""What records of this installation depend on: kernels, torch, Triton, driver."""

from __future__ import annotations

import torch

from prefetch_compiler.templates.manifest import SPLIT_KV

from ..database.record import Toolchain
from ..database.template_hash import template_hash

# Of records that were never measured.
NO_DRIVER = "none"


def present_toolchain(measured: bool) -> Toolchain:
    """The versions at hand; the driver's only where something is measured."""
    import triton

    from ..bench.environment import driver_version

    driver = (driver_version() or "unknown") if measured else NO_DRIVER
    return Toolchain(SPLIT_KV.name, template_hash(SPLIT_KV), str(torch.__version__), str(triton.__version__), driver)
