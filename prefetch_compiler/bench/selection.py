"""What selection costs: a database of made-up records, read, arranged and looked into. Needs no GPU.

Times are CPU time of this process, so that other work on the machine matters little. Nothing of it happens when a
compiled model runs.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefetch_compiler.templates.manifest import SPLIT_KV

from ..config import KernelConfig
from ..database import overlay
from ..database.device_identity import identity_of
from ..database.document import Database, encode
from ..database.key import Alignment, Layout, MaskClass, TuningKey
from ..database.record import Evidence, FillTiming, Measurement, Rival, Timing, Toolchain, TuningRecord
from ..database.template_hash import hash_for
from ..device import REFERENCE_DEVICES
from ..report import Verdict
from ..select.candidates import candidates_for, triton_minor
from ..select.digest import digest_of
from ..select.selection import select
from ..spec import AttentionSpec
from .samples import Samples

# Query and KV heads, head_dim: of well-known models.
SHAPES = ((32, 8, 128), (64, 8, 128), (28, 4, 128), (40, 8, 128), (9, 3, 64), (12, 12, 64), (8, 4, 256), (32, 32, 96))
BATCHES = tuple(1 << exponent for exponent in range(9))
CAPACITIES = tuple(1 << exponent for exponent in range(10, 18))
DTYPES = ("bfloat16", "float16")
MASKS = (MaskClass.BOOL, MaskClass.NONE)
REPEATS = 7
PROFILE = REFERENCE_DEVICES[90]

T = TypeVar("T")


@dataclass(frozen=True)
class SelectionCost:
    """Times of one kind of site are per selection, in microseconds; the others once a process, in milliseconds."""

    records: int
    file_bytes: int
    read_ms: float
    arrange_ms: float
    digest_ms: float
    load_again_us: float
    site_us: dict[str, Samples]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "site_us": {name: samples.to_dict() for name, samples in self.site_us.items()}}


def measure(records: int = 2000) -> SelectionCost:
    """Time selection over a database of about ``records`` records, in a folder that is then removed."""
    made = list(itertools.islice(_records(), records))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        path.write_bytes(encode(Database(identity_of(PROFILE), tuple(made))))
        overlay.forget()
        databases, read_s = _timed(lambda: overlay.load([path], strict=True))
        _, again_s = _timed(lambda: [overlay.load([path]) for _ in range(100)])
        size = path.stat().st_size
    _, arrange_s = _timed(lambda: candidates_for(identity_of(PROFILE), databases))
    _, digest_s = _timed(lambda: digest_of(PROFILE, databases))
    sites = {verdict.value: _site_us(specs, verdict, databases) for verdict, specs in _sites(made).items()}
    overlay.forget()
    return SelectionCost(len(made), size, read_s * 1e3, arrange_s * 1e3, digest_s * 1e3, again_s * 1e4, sites)


def _records() -> Iterator[TuningRecord]:
    timing = Timing(20.0, 19.0, 21.0)
    for capacity, batch, dtype, mask, (heads, kv_heads, dim) in itertools.product(
        CAPACITIES, BATCHES, DTYPES, MASKS, SHAPES
    ):
        key = TuningKey(
            dtype, dtype, heads // kv_heads, kv_heads, dim, dim, 1, batch, capacity, Layout.BHSD, Alignment.TMA, mask
        )
        config = KernelConfig(32, max(1, 128 // batch), 4, 2)
        toolchain = Toolchain(SPLIT_KV.name, hash_for(SPLIT_KV, key, config), "2.11.0", f"{triton_minor()}.0", "none")
        fills = (FillTiming(capacity, 1 << 20, 20.0, 18.0),)
        measurement = Measurement(timing, Rival(config, timing), Rival(config, timing), fills, 0.9, 0.5)
        yield TuningRecord(key, config, Evidence(toolchain, 64, 0, "2026-01-01", measurement))


def _sites(made: list[TuningRecord]) -> dict[Verdict, list[AttentionSpec]]:
    """Specs that meet each end of the lookup: their own record, a neighbour's, or none near."""
    keys = [record.key for record in made]
    largest = max(key.batch_bucket for key in keys)
    at_largest = [key for key in keys if key.batch_bucket == largest]
    return {
        Verdict.EXACT: [key.spec() for key in keys],
        Verdict.BUCKET: [key.at(batch=2 * largest, capacity=key.capacity_bucket).spec() for key in at_largest],
        Verdict.HEURISTIC: [key.at(batch=4 * largest, capacity=key.capacity_bucket).spec() for key in at_largest],
    }


def _site_us(specs: list[AttentionSpec], verdict: Verdict, databases: overlay.Overlays) -> Samples:
    """The mean over all specs, once a repeat."""
    means = []
    for _ in range(REPEATS):
        found, seconds = _timed(lambda: [select(spec, PROFILE, databases) for spec in specs])
        assert {selection.verdict for selection in found} == {verdict}
        means.append(seconds / len(specs) * 1e6)
    return Samples(means)


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    start = time.process_time()
    result = run()
    return result, time.process_time() - start
