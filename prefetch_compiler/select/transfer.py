"""A configuration tuned for another size or another GPU model, made to fit: only ``num_splits`` depends on both.

Rule: the number of programs stays about what it was per SM. With ``b`` the batch bucket and ``m`` the SM count,

    splits here = splits there * (b there / b here) * (m here / m there), to the nearest whole number,

at least 1, and at most one for each KV tile of the capacity and MAX_SPLITS. A configuration that does not split stays
unsplit wherever the site has a program for every SM without splitting: merging would only cost. A capacity that differs
changes nothing but the limit. Streamed programs share a batch whatever its size: for them ``b`` is 1, and the tiles are
those of all sequences.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import MAX_SPLITS, KernelConfig, Merge, Partition
from ..database.key import TuningKey
from .footprint import programs_before_splitting


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
    programs = programs_before_splitting(wanted.spec())
    if config.num_splits == 1 and programs >= sm_count:
        return 1
    streamed = config.streams
    batch_there, batch_here = (1, 1) if streamed else (tuned_at.batch_bucket, wanted.batch_bucket)
    programs_there, per_split = config.num_splits * batch_there * sm_count, batch_here * tuned_sms
    nearest = (2 * programs_there + per_split) // (2 * per_split)
    tiles = -(-wanted.capacity_bucket // config.block_kv) * (wanted.batch_bucket if streamed else 1)
    return max(1, min(nearest, tiles, MAX_SPLITS))
