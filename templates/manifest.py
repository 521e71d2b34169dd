"""Name -> template: where its kernels are, and which specs it covers. Adding a kernel is one template and one line."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefetch_compiler.database.key import TuningKey
    from prefetch_compiler.spec import AttentionSpec


@dataclass(frozen=True, eq=False)
class OptionalFeature:
    """What a template's kernels can do and many keys do without. Records of keys without it outlive its changes.

    Attributes:
        name: unique in its template.
        absent: parameter -> what it is when the feature is not there. Of the kernels, these are the values that every
            launch for a key without the feature has; helpers' parameters of these names must mean the same.
        present: whether a key has it.
    """

    name: str
    absent: Mapping[str, bool | int | float | str | None]
    present: Callable[[TuningKey], bool]


@dataclass(frozen=True)
class Template:
    """One kernel family.

    Attributes:
        entries: the kernels that are launched, each as ``module.function`` of this package.
        refusal: why a spec is not covered, or None when it is.
        features: what its kernels need not have compiled in. A parameter belongs to one feature.
    """

    name: str
    entries: tuple[str, ...]
    refusal: Callable[[AttentionSpec], str | None]
    features: tuple[OptionalFeature, ...] = ()

    def load(self, module: str) -> ModuleType:
        """Import one of the template's modules (and with it Triton).

        Raises:
            ImportError: Triton is not installed.
        """
        return importlib.import_module(f"{__package__}.{module}")

    @cached_property
    def feature_names(self) -> frozenset[str]:
        return frozenset(feature.name for feature in self.features)

    def features_of(self, key: TuningKey) -> frozenset[str]:
        """Names of the features that ``key`` has."""
        return frozenset([feature.name for feature in self.features if feature.present(key)])

    def absent_values(self, present: Collection[str]) -> dict[str, bool | int | float | str | None]:
        """Parameters of all features but those ``present``."""
        absent = [feature.absent for feature in self.features if feature.name not in present]
        return {name: value for values in absent for name, value in values.items()}


def _split_kv_refusal(spec: AttentionSpec) -> str | None:
    if spec.is_causal and spec.mask.value != "none":
        return "is_causal=True together with a mask: put the causality into the mask"
    return None


# Bounds are computed from the mask, and only from it.
_MASK = OptionalFeature(
    name="mask",
    absent={"MASK": "none", "MASK_PER_ROW": False, "mask_ptr": None, "bounds_ptr": None, "HAS_BOUNDS": False},
    present=lambda key: key.mask.value not in ("none", "causal"),
)
_SOFTCAP = OptionalFeature("softcap", absent={"softcap": None}, present=lambda key: "softcap" in key.features)
_SINK = OptionalFeature("sink", absent={"sink_ptr": None}, present=lambda key: "sink" in key.features)
_CAUSAL = OptionalFeature("causal", absent={"CAUSAL": False}, present=lambda key: key.mask.value == "causal")

SPLIT_KV = Template(
    name="split_kv_decode",
    entries=("split_kv_decode.split_kv_decode", "merge_splits.merge_splits"),
    refusal=_split_kv_refusal,
    features=(_MASK, _CAUSAL, _SOFTCAP, _SINK),
)

TEMPLATES: tuple[Template, ...] = (SPLIT_KV,)
