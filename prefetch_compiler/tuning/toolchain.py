"""What records of this installation depend on: kernels, torch, Triton, driver."""

from __future__ import annotations

from dataclasses import replace

import torch

from prefetch_compiler.templates.manifest import QUANTISED, SPLIT_KV

from ..database.key import TuningKey, is_quantised
from ..database.record import Toolchain
from ..database.template_hash import template_hash

# Of records that were never measured.
NO_DRIVER = "none"


def present_toolchain(measured: bool) -> Toolchain:
    """The versions at hand, with the template of caches that are not quantised; the driver's only where something is
    measured."""
    import triton

    from ..bench.environment import driver_version

    driver = (driver_version() or "unknown") if measured else NO_DRIVER
    return Toolchain(SPLIT_KV.name, template_hash(SPLIT_KV), str(torch.__version__), str(triton.__version__), driver)


def toolchain_of(key: TuningKey, present: Toolchain) -> Toolchain:
    """``present`` with the template that serves ``key``."""
    if not is_quantised(key):
        return present
    return replace(present, template=QUANTISED.name, template_hash=template_hash(QUANTISED))
