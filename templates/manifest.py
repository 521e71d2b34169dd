"""Name -> template: where its kernels are, and which specs it covers. Adding a kernel is one template and one line."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefetch_compiler.spec import AttentionSpec


@dataclass(frozen=True)
class Template:
    """One kernel family.

    Attributes:
        modules: names, in this package, of the modules that hold its kernels; also what its source hash covers.
        refusal: why a spec is not covered, or None when it is.
    """

    name: str
    modules: tuple[str, ...]
    refusal: Callable[[AttentionSpec], str | None]

    def load(self, module: str) -> ModuleType:
        """Import one of the template's modules (and with it Triton).

        Raises:
            ImportError: Triton is not installed.
        """
        return importlib.import_module(f"{__package__}.{module}")


def _split_kv_refusal(spec: AttentionSpec) -> str | None:
    if spec.is_causal and spec.mask.value != "none":
        return "is_causal=True together with a mask"
    return None


SPLIT_KV = Template(
    name="split_kv_decode",
    modules=("split_kv_decode", "merge_splits", "split_plan", "softmax", "rounding", "prefetch"),
    refusal=_split_kv_refusal,
)

TEMPLATES: tuple[Template, ...] = (SPLIT_KV,)
