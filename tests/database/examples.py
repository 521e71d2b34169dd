"""Records to test with: one by hand, and hypothesis strategies for all that the file format allows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from hypothesis import strategies as st

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, PrefetchKind
from prefetch_compiler.database.document import Database
from prefetch_compiler.database.key import Alignment, Feature, Layout, MaskClass, TuningKey
from prefetch_compiler.database.record import (
    DeviceIdentity,
    Evidence,
    FillTiming,
    Measurement,
    Rival,
    Timing,
    Toolchain,
    TuningRecord,
)

H200 = DeviceIdentity("NVIDIA H200", "cuda", 90, 132)
H100 = DeviceIdentity("NVIDIA H100 80GB HBM3", "cuda", 90, 132)
DTYPES = ("float16", "bfloat16", "float32")
QUANTISED = ("float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int4_halves", "uint4_interleaved")

KEY = TuningKey(
    dtype="bfloat16",
    kv_dtype="bfloat16",
    group=4,
    kv_heads=8,
    head_dim=128,
    value_dim=128,
    q_len_bucket=1,
    batch_bucket=16,
    capacity_bucket=4096,
    layout=Layout.BHSD,
    alignment=Alignment.TMA,
    mask=MaskClass.BOOL,
)
CONFIG = KernelConfig(block_kv=64, num_splits=4, num_warps=4, num_stages=3)
# What the heuristic is said to have chosen.
DEFAULT = KernelConfig(block_kv=32, num_splits=2, num_warps=2, num_stages=3)
TOOLCHAIN = Toolchain("split_kv_decode", "0123abcd" * 8, "2.11.0+cu130", "3.6.0", "580.65.06")


def timing(median_us: float) -> Timing:
    return Timing(median_us, median_us * 0.75, median_us * 1.5)


def measured(
    key: TuningKey = KEY,
    median_us: float = 20.0,
    trials: int = 64,
    date: str = "2026-01-31T12:00:00Z",
    config: KernelConfig = CONFIG,
    toolchain: Toolchain = TOOLCHAIN,
    default_us: float = 25.0,
    depth0_us: float = 22.0,
) -> TuningRecord:
    """A record that ran on the device, and beat ``DEFAULT``; ``CONFIG`` is the best without prefetch."""
    measurement = Measurement(
        timing=timing(median_us),
        default=Rival(DEFAULT, timing(default_us)),
        best_depth0=Rival(CONFIG, timing(depth0_us)),
        fills=(
            FillTiming(max(1, key.capacity_bucket // 8), 1 << 20, median_us / 2, 8.0),
            FillTiming(key.capacity_bucket, 1 << 23, median_us * 1.5, 0.0),
        ),
        ceiling_share=0.875,
        error=0.25,
    )
    return TuningRecord(key, config, Evidence(toolchain, trials, 0, date, measurement))


def modelled(key: TuningKey = KEY, modelled_us: float = 10.0, trials: int = 64) -> TuningRecord:
    """A record that never ran."""
    evidence = Evidence(TOOLCHAIN, trials, 0, "2026-01-31", None, modelled_us)
    return TuningRecord(key, CONFIG, evidence)


def database(*records: TuningRecord, family_fallback: bool = False) -> Database:
    return Database(H200, records, family_fallback)


def _powers_of_two(largest: int) -> st.SearchStrategy[int]:
    return st.integers(0, largest.bit_length() - 1).map(lambda exponent: 1 << exponent)


def _printable(smallest: int, largest: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=smallest, max_size=largest)


times = st.floats(1e-3, 1e9) | st.integers(1, 10**6).map(float)
configs = st.builds(
    KernelConfig,
    block_kv=st.sampled_from((16, 32, 64, 128, 256)),
    num_splits=st.integers(1, 512),
    num_warps=st.sampled_from((1, 2, 4, 8)),
    num_stages=st.integers(1, 8),
    prefetch_depth=st.integers(0, 8),
    prefetch_kind=st.sampled_from(PrefetchKind),
    load_path=st.sampled_from(LoadPath),
    operand_order=st.sampled_from(OperandOrder),
    launch_overlap=st.booleans(),
    merge=st.sampled_from(Merge),
)
timings = st.tuples(times, times, times).map(sorted).map(lambda three: Timing(three[1], three[0], three[2]))


@st.composite
def keys(draw: st.DrawFn) -> TuningKey:
    kv_dtype = draw(st.sampled_from((*DTYPES, *QUANTISED)))
    scales = st.sampled_from(((), (Feature.KEY_TOKEN_SCALES,), (Feature.KEY_TOKEN_SCALES, Feature.VALUE_TOKEN_SCALES)))
    token_scales = draw(scales) if kv_dtype in QUANTISED else ()
    zeros = st.sampled_from(((), (Feature.KEY_ZEROS,), (Feature.KEY_MINIMA, Feature.VALUE_ZEROS)))
    given_zeros = draw(zeros) if kv_dtype in QUANTISED else ()
    groups = st.sampled_from(((), (Feature.VALUE_GROUPS,), (Feature.VALUE_RUNS,)))
    if kv_dtype in QUANTISED and Feature.VALUE_TOKEN_SCALES not in token_scales:
        given_zeros = (*given_zeros, *draw(groups))
    mask = draw(st.sampled_from(MaskClass))
    additive = mask in (MaskClass.ADDITIVE, MaskClass.ADDITIVE_ROWS)
    return TuningKey(
        dtype=draw(st.sampled_from(DTYPES)),
        kv_dtype=kv_dtype,
        group=draw(st.integers(1, 128)),
        kv_heads=draw(st.integers(1, 128)),
        head_dim=draw(st.integers(1, 256)),
        value_dim=draw(st.integers(1, 256)),
        q_len_bucket=draw(_powers_of_two(16)),
        batch_bucket=draw(_powers_of_two(1024)),
        capacity_bucket=draw(_powers_of_two(1 << 20)),
        layout=draw(st.sampled_from(Layout)),
        alignment=draw(st.sampled_from(Alignment)),
        mask=mask,
        mask_dtype=draw(st.sampled_from(DTYPES)) if additive else "",
        features=tuple(sorted((*draw(st.sampled_from(((), (Feature.GROWING,)))), *token_scales, *given_zeros))),
    )


@st.composite
def measurements(draw: st.DrawFn, key: TuningKey) -> Measurement:
    depth0 = draw(configs.filter(lambda config: config.prefetch_depth == 0))
    held = sorted(draw(st.lists(st.integers(1, key.capacity_bucket), min_size=1, max_size=4)))
    zero_or_time = times | st.just(0.0)
    return Measurement(
        timing=draw(timings),
        default=Rival(draw(configs), draw(timings)),
        best_depth0=Rival(depth0, draw(timings)),
        fills=tuple(FillTiming(keys, draw(st.integers(1, 1 << 40)), draw(times), draw(zero_or_time)) for keys in held),
        ceiling_share=draw(st.floats(0, 1.5).map(abs)),
        error=draw(st.floats(0, 1).map(abs)),
    )


toolchains = st.builds(
    Toolchain,
    template=st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True),
    template_hash=st.text("0123456789abcdef", min_size=8, max_size=64),
    torch=_printable(0, 20),
    triton=st.from_regex(r"[0-9]{1,2}\.[0-9]{1,2}(\.[0-9a-z+]{1,9})?", fullmatch=True),
    driver=_printable(0, 20),
)
days = st.dates(datetime(2000, 1, 1).date()).map(lambda day: day.isoformat())
seconds = st.datetimes(datetime(2000, 1, 1)).map(lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ"))


@st.composite
def records(draw: st.DrawFn, key: Any = None, toolchain: Any = None) -> TuningRecord:
    """Args: strategies that stand in for any key and any toolchain."""
    chosen = draw(key or keys())
    measurement = draw(st.none() | measurements(chosen))
    return TuningRecord(
        chosen,
        draw(configs),
        Evidence(
            toolchain=draw(toolchain or toolchains),
            trials=draw(st.integers(0, 1 << 31)),
            seed=draw(st.integers(0, (1 << 63) - 1)),
            date=draw(days | seconds),
            measurement=measurement,
            modelled_us=draw(times if measurement is None else st.none() | times),
        ),
    )


devices = st.builds(
    DeviceIdentity,
    name=_printable(1, 40),
    backend=st.sampled_from(("cuda", "hip")),
    arch=st.integers(0, 200),
    sm_count=st.integers(1, 1000),
)


def databases(
    device: st.SearchStrategy[DeviceIdentity] = devices, record: st.SearchStrategy[TuningRecord] | None = None
) -> st.SearchStrategy[Database]:
    listed = st.lists(records() if record is None else record, max_size=4, unique_by=lambda one: one.identity).map(
        tuple
    )
    return st.builds(Database, device, listed, st.booleans())


# Few identities and few values, so that rivals and ties are common.
rivals = st.builds(
    measured,
    key=st.sampled_from((KEY, KEY.at(batch=1, capacity=4096))),
    median_us=st.sampled_from((10.0, 20.0)),
    trials=st.sampled_from((8, 64)),
    date=st.sampled_from(("2026-01-31", "2026-02-01")),
    default_us=st.sampled_from((25.0, 30.0)),
) | st.builds(modelled, modelled_us=st.sampled_from((5.0, 6.0)), trials=st.sampled_from((8, 64, 100)))
rival_databases = databases(st.just(H200), rivals)
