"""The file format, version 2, as types: what may stand where in a database file. The JSON schema is made of these.

They repeat the fields of ``record.py`` and ``key.py`` on purpose: a field that is renamed there does not change the
files that are out there. Everything is required, and nothing else is allowed. What a type cannot say (buckets are
powers of two, p20 <= median <= p80, ...) is in ``rules.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..config import LoadPath, Merge, OperandOrder, Partition, PrefetchKind
from .key import Alignment, Feature, Layout, MaskClass

SCHEMA_VERSION = 2
MAX_RECORDS = 100_000

# A "$" also matches before a final line break, in Python and not in JSON schema's dialect: the look-ahead refuses it.
_END = r"$(?!\n)"
# Nothing that a terminal, a table or a file name could trip over.
_PRINTABLE = r"^[ -~]*" + _END

Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=_PRINTABLE)]
Version = Annotated[str, Meta(max_length=64, pattern=_PRINTABLE)]
TritonVersion = Annotated[str, Meta(max_length=64, pattern=r"^[0-9]{1,4}\.[0-9]{1,4}([.+][ -~]*)?" + _END)]
TemplateName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}" + _END)]
SourceHash = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,64}" + _END)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}" + _END)]
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"[0-9]{2}:[0-9]{2}:[0-9]{2}"
# UTC, so that dates compare as text.
Date = Annotated[str, Meta(pattern=rf"^{_DAY}(T{_TIME}Z)?{_END}", description="A day or a second, UTC (ISO 8601).")]

# Two head counts multiply to less than 2**31.
Heads = Annotated[int, Meta(ge=1, le=1 << 15)]
Dim = Annotated[int, Meta(ge=1, le=1 << 13)]
Bucket = Annotated[int, Meta(ge=1, le=1 << 30, description="A power of two: the largest size of the bucket.")]
Microseconds = Annotated[float, Meta(gt=0, le=1e12)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 50)]


class WireKey(Struct, frozen=True, forbid_unknown_fields=True):
    dtype: Literal["float16", "bfloat16", "float32"]
    kv_dtype: Literal[
        "float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int4_halves",
        "int4_interleaved", "uint4_halves", "uint4_interleaved",
    ]  # fmt: skip
    group: Heads
    kv_heads: Heads
    head_dim: Dim
    value_dim: Dim
    q_len_bucket: Bucket
    batch_bucket: Bucket
    capacity_bucket: Bucket
    layout: Layout
    alignment: Alignment
    mask: MaskClass
    mask_dtype: Literal["", "float16", "bfloat16", "float32"]
    features: Annotated[tuple[Feature, ...], Meta(max_length=16)]


class WireConfig(Struct, frozen=True, forbid_unknown_fields=True):
    block_kv: Literal[16, 32, 64, 128, 256]
    num_splits: Annotated[int, Meta(ge=1, le=512)]
    num_warps: Literal[1, 2, 4, 8]
    num_stages: Annotated[int, Meta(ge=1, le=8)]
    prefetch_depth: Annotated[int, Meta(ge=0, le=8)]
    prefetch_kind: PrefetchKind
    load_path: LoadPath
    operand_order: OperandOrder
    launch_overlap: bool
    merge: Merge
    partition: Partition
    prologue_prefetch: bool


class WireTiming(Struct, frozen=True, forbid_unknown_fields=True):
    median_us: Microseconds
    p20_us: Microseconds
    p80_us: Microseconds


class WireRival(Struct, frozen=True, forbid_unknown_fields=True):
    config: WireConfig
    timing: WireTiming


class WireFill(Struct, frozen=True, forbid_unknown_fields=True):
    held: Annotated[int, Meta(ge=1, le=1 << 30)]
    kv_bytes: Bytes
    median_us: Microseconds
    ceiling_us: Annotated[float, Meta(ge=0, le=1e12, description="0: the ceiling was not measured.")]


class WireMeasurement(Struct, frozen=True, forbid_unknown_fields=True):
    timing: WireTiming
    default: WireRival
    best_depth0: WireRival
    fills: Annotated[tuple[WireFill, ...], Meta(min_length=1, max_length=16)]
    ceiling_share: Annotated[float, Meta(ge=0, le=16)]
    error: Annotated[float, Meta(ge=0, le=1)]


class WireToolchain(Struct, frozen=True, forbid_unknown_fields=True):
    template: TemplateName
    template_hash: SourceHash
    torch: Version
    triton: TritonVersion
    driver: Version


class WireEvidence(Struct, frozen=True, forbid_unknown_fields=True):
    toolchain: WireToolchain
    trials: Annotated[int, Meta(ge=0, le=1 << 31)]
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
    date: Date
    measurement: WireMeasurement | None
    modelled_us: Microseconds | None


class WireRecord(Struct, frozen=True, forbid_unknown_fields=True):
    key: WireKey
    config: WireConfig
    evidence: WireEvidence
    checksum: Annotated[Sha256, Meta(description="SHA-256 of the record without this field, as compact sorted JSON.")]


class WireDevice(Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    backend: Literal["cuda", "hip", "interpreter"]
    arch: Annotated[int, Meta(ge=0, le=9999)]
    sm_count: Annotated[int, Meta(ge=1, le=100_000)]


class WireDatabase(Struct, frozen=True, forbid_unknown_fields=True):
    """A tuning database: the best known kernel configurations of one GPU model, with the evidence for each."""

    schema_version: Literal[2]
    device: WireDevice
    family_fallback: Annotated[
        bool, Meta(description="Whether GPUs of the same family may use these records, and say so.")
    ]
    records: Annotated[tuple[WireRecord, ...], Meta(max_length=MAX_RECORDS)]
    digest: Annotated[Sha256, Meta(description="SHA-256 of every byte of the file before this value.")]


T = TypeVar("T")


def structure(plain: object, kind: type[T]) -> T:
    """``plain`` as ``kind``, converting nothing.

    Raises:
        msgspec.ValidationError: it does not have that structure; the text says where.
    """
    return msgspec.convert(plain, kind, strict=True)
