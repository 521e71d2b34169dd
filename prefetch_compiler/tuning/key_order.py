"""The order in which a job takes its keys: those whose kernels are the same one after the other."""

from __future__ import annotations

from collections.abc import Iterable

from ..database.key import TuningKey, sort_key


def in_order(keys: Iterable[TuningKey]) -> list[TuningKey]:
    """Each key once."""
    return sorted(dict.fromkeys(keys), key=lambda key: (str(_shape_of(key)), sort_key(key)))


def _shape_of(key: TuningKey) -> tuple[object, ...]:
    """Equal for keys whose kernels are the same."""
    return (
        key.dtype, key.kv_dtype, key.group, key.kv_heads, key.head_dim, key.value_dim, key.layout.value,
        key.alignment.value, key.mask.value, key.mask_dtype, key.q_len_bucket,
    )  # fmt: skip
