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
    if spec.cache is not None:
        return "a quantised cache"
    if spec.is_causal and spec.mask.value != "none":
        return "is_causal=True together with a mask"
    return None


def _quantised_refusal(spec: AttentionSpec) -> str | None:
    if spec.cache is None:
        return "a cache that is not quantised"
    if spec.is_causal and spec.mask.value != "none":
        return "is_causal=True together with a mask"
    if spec.dtype.itemsize != 2:
        return f"queries of {spec.dtype}: the products are those of 16-bit numbers, which would round them"
    if spec.head_dim % 8 or spec.value_dim % 8:
        return f"head dims {spec.head_dim} and {spec.value_dim}: they must be multiples of 8"
    if max(spec.head_dim, spec.value_dim) > 256:
        return f"head dims {spec.head_dim} and {spec.value_dim}: they must be 256 at most"
    if any(stride % 2 for layout in (spec.key_layout, spec.value_layout) for stride in layout.strides):
        return "K or V with an odd stride: columns are read in pairs"
    return None


SPLIT_KV = Template(
    name="split_kv_decode",
    modules=("split_kv_decode", "merge_splits", "split_plan", "softmax", "rounding", "prefetch"),
    refusal=_split_kv_refusal,
)

QUANTISED = Template(
    name="quantised_decode",
    modules=(
        "quantised_decode", "unpack", "masking", "merge_splits", "split_plan", "softmax", "rounding", "prefetch",
    ),
    refusal=_quantised_refusal,
)  # fmt: skip

TEMPLATES: tuple[Template, ...] = (SPLIT_KV, QUANTISED)
