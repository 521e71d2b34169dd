"""A configuration tuned for another size or another GPU model, made to fit: only ``num_splits`` depends on both.

Rule: the number of programs stays about what it was per SM. With ``b`` the batch bucket and ``m`` the SM count,

    splits here = splits there * (b there / b here) * (m here / m there), to the nearest whole number,

at least 1, and at most one for each KV tile of the capacity and MAX_SPLITS. A configuration that does not split stays
unsplit wherever the site has a program for every SM without splitting: merging would only cost. A capacity that differs
changes nothing but the limit.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import MAX_SPLITS, KernelConfig, Merge, Partition
from ..database.key import TuningKey
from .footprint import row_tiles_of


def transferred(
    config: KernelConfig, tuned_at: TuningKey, tuned_sms: int, wanted: TuningKey, sm_count: int
) -> KernelConfig:
    """``config``, tuned for ``tuned_at`` on ``tuned_sms`` SMs, for ``wanted`` on ``sm_count``."""
    splits = _splits(config, tuned_at, tuned_sms, wanted, sm_count)
    if splits == config.num_splits:
        return config
    if splits == 1:
        return replace(config, num_splits=1, merge=Merge.SEPARATE, partition=Partition.EVEN)
    return replace(config, num_splits=splits)


def _splits(config: KernelConfig, tuned_at: TuningKey, tuned_sms: int, wanted: TuningKey, sm_count: int) -> int:
    programs = wanted.batch_bucket * wanted.kv_heads * row_tiles_of(wanted.spec())
    if config.num_splits == 1 and programs >= sm_count:
        return 1
    programs_there, per_split = config.num_splits * tuned_at.batch_bucket * sm_count, wanted.batch_bucket * tuned_sms
    nearest = (2 * programs_there + per_split) // (2 * per_split)
    tiles = -(-wanted.capacity_bucket // config.block_kv)
    return max(1, min(nearest, tiles, MAX_SPLITS))
