"""The figures of docs/tuning.md on the shipped database: `python docs/data/shipped_database.py` writes its two tables
anew, and prints the figures that the text around them names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean

from prefetch_compiler.database.overlay import Overlays
from prefetch_compiler.database.record import FillTiming, Measurement, TuningRecord
from prefetch_compiler.database.store import read
from prefetch_compiler.device import REFERENCE_DEVICES
from prefetch_compiler.select.selection import select
from prefetch_compiler.tuning.presets import PRESETS, presets_keys

DATABASE = Path(__file__).parents[2] / "tuning_db" / "nvidia_h200-132sm.json"
PAGE = Path(__file__).parents[1] / "tuning.md"
SIZES = (
    ("below 4 MiB", 0, 4), ("4 to 16 MiB", 4, 16), ("16 to 64 MiB", 16, 64), ("64 to 256 MiB", 64, 256),
    ("256 MiB and more", 256, 1e9),
)  # fmt: skip
SHAPE_ROW = re.compile(
    r"\| (?P<heads>\d+)/(?P<kv>\d+), (?P<dim>\d+)(?: \+ 64)?(?P<byte>, one byte a number)? "
    r"\|[^|]*\|[^|]*\| (?P<count>\d+) \| "
)
BATCHES, CAPACITIES, MOST_BYTES = [1 << n for n in range(9)], [1024 << n for n in range(8)], 140e9


def measured(record: TuningRecord) -> Measurement:
    assert record.evidence.measurement is not None
    return record.evidence.measurement


def full(record: TuningRecord) -> FillTiming:
    return measured(record).fills[-1]


def mebibytes(record: TuningRecord) -> float:
    return full(record).kv_bytes / 2**20


def gain(record: TuningRecord) -> float:
    return measured(record).default.timing.median_us / measured(record).timing.median_us


def share(record: TuningRecord) -> float:
    return measured(record).ceiling_share


def full_over_ceiling(record: TuningRecord) -> float:
    return full(record).median_us / full(record).ceiling_us


def of_shape(records: Sequence[TuningRecord], row: re.Match[str]) -> list[TuningRecord]:
    def fits(record: TuningRecord) -> bool:
        key = record.key
        shape = (key.group * key.kv_heads, key.kv_heads, key.head_dim, key.kv_dtype != key.dtype)
        return shape == (int(row["heads"]), int(row["kv"]), int(row["dim"]), row["byte"] is not None)

    return [record for record in records if fits(record)]


def tables(text: str, records: Sequence[TuningRecord]) -> str:
    lines = []
    for line in text.split("\n"):
        row = SHAPE_ROW.match(line)
        found = of_shape(records, row) if row else []
        if row and found:
            gains, shares = [gain(one) for one in found], [share(one) for one in found]
            figures = f"{geometric_mean(gains):.3f}, {max(gains):.2f} | {min(shares):.0%} to {max(shares):.0%}"
            line = f"{line[: row.start('count')]}{len(found)} | {figures} |"
        for name, least, most in SIZES:
            if line.startswith(f"| {name} | "):
                found = [one for one in records if least <= mebibytes(one) < most]
                gains = [gain(one) for one in found]
                mean = geometric_mean([share(one) for one in found])
                line = f"| {name} | {len(found)} | {geometric_mean(gains):.3f} | {max(gains):.2f} | {mean:.0%} |"
        lines.append(line)
    return "\n".join(lines)


def show(records: Sequence[TuningRecord]) -> None:
    kept = sum(one.config == measured(one).default.config for one in records)
    mean = geometric_mean(map(gain, records))
    print(f"{len(records)} records, {kept} of the heuristic's choice; gain {mean:.3f}; largest:")
    for one in sorted(records, key=gain)[-6:]:
        print(f"  {gain(one):.3f} {one.key.name} {one.config.encode()}, {measured(one).default.config.encode()}")
    for name, least, most in SIZES:
        over = [full_over_ceiling(one) for one in records if least <= mebibytes(one) < most]
        print(f"full caches {name}: {geometric_mean(over):.2f} times the ceiling, {min(over):.2f} to {max(over):.2f}")
    large = [one for one in records if mebibytes(one) >= SIZES[-1][1]]
    short = sorted((1 / full_over_ceiling(one), one.key.name) for one in large if full_over_ceiling(one) > 1 / 0.97)
    reached = geometric_mean([1 / full_over_ceiling(one) for one in large])
    print(f"the last at {reached:.1%} of it, below 97% in {len(short)} of {len(large)}:")
    for reached, key in short:
        print(f"  {reached:.3f} {key}")
    print(Counter(one.config.partition.value if one.config.num_splits > 1 else "unsplit" for one in records))
    count(records, "streamed", lambda one: one.config.streams)
    count(records, "streamed, 8,192 keys and more", lambda one: one.config.streams and one.key.capacity_bucket >= 8192)
    count(records, "rows padded to a warpgroup's", lambda one: one.config.operand_order.value == "qk64")
    count(records, "a depth above 0", lambda one: one.config.prefetch_depth > 0)
    count(records, "a prologue prefetch", lambda one: one.config.prologue_prefetch)


def count(records: Sequence[TuningRecord], name: str, chosen: Callable[[TuningRecord], bool]) -> None:
    print(f"{name}: {sum(map(chosen, records))}")


def coverage() -> None:
    overlays = Overlays(((read(DATABASE),),))
    keys = presets_keys(PRESETS, BATCHES, CAPACITIES, ("bfloat16", "float16"))
    specs = [spec for key in keys if (spec := key.spec()).capacity_bytes <= MOST_BYTES]
    verdicts = Counter(select(spec, REFERENCE_DEVICES[90], overlays).verdict.value for spec in specs)
    print(f"of {len(specs)} keys of all presets: {dict(verdicts)}")


def main() -> None:
    records = read(DATABASE).records
    PAGE.write_text(tables(PAGE.read_text(), records))
    show(records)
    coverage()


if __name__ == "__main__":
    main()
