"""What records of this installation depend on: kernels, torch, Triton, driver."""

from __future__ import annotations

from collections.abc import Callable

import torch

from prefetch_compiler.templates.manifest import TEMPLATES

from ..config import KernelConfig
from ..database.key import TuningKey
from ..database.record import Toolchain
from ..database.template_hash import hash_for

# Of records that were never measured.
NO_DRIVER = "none"


# Of a key's kernels under a configuration; or without one, of all that a study of the key chooses from.
ToolchainOf = Callable[[TuningKey, KernelConfig | None], Toolchain]


def present_toolchain(measured: bool) -> ToolchainOf:
    """What records and studies depend on here: the versions at hand, and the kernels. The driver counts only where
    something is measured."""
    import triton

    from ..bench.environment import driver_version

    driver = (driver_version() or "unknown") if measured else NO_DRIVER
    versions = (str(torch.__version__), str(triton.__version__), driver)

    def toolchain(key: TuningKey, config: KernelConfig | None) -> Toolchain:
        spec = key.spec()
        template = next(one for one in TEMPLATES if one.refusal(spec) is None)
        return Toolchain(template.name, hash_for(template, key, config), *versions)

    return toolchain
