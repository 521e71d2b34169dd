"""What the heuristic chooses follows from how many programs there are before splitting, and how long the cache is."""

from __future__ import annotations

import pytest

from prefetch_compiler.config import KernelConfig, LoadPath, OperandOrder, Partition
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.device import REFERENCE_DEVICES, DeviceProfile
from prefetch_compiler.select.admissible import why_inadmissible
from prefetch_compiler.select.footprint import kv_tile_bytes
from prefetch_compiler.select.heuristic import choose

H200 = REFERENCE_DEVICES[90]
PROGRAMS_OF_ONE_AN_SM = 16 * 8


def chosen(sizes: str, mask: str = "bool", heads: str = "32q/8kv d128", device: DeviceProfile = H200) -> KernelConfig:
    spec = parse_key(f"bfloat16 {heads} q1 {sizes} bhsd-tma {mask}").spec()
    config = choose(spec, device)
    assert why_inadmissible(spec, config, device) is None
    return config


def test_few_programs_are_split_until_every_sm_has_two() -> None:
    config = chosen("b1 s4096")
    assert 2 * H200.sm_count - 8 <= 8 * config.num_splits <= 2 * H200.sm_count
    assert (config.partition, config.load_path) == (Partition.STRIDED, LoadPath.POINTER)


@pytest.mark.parametrize(
    ("heads", "capacity", "splits"),
    [
        ("32q/1kv d64", 65536, 128),
        ("32q/1kv d64", 131072, 256),
        ("4q/1kv d256", 131072, 128),
        ("4q/1kv d256", 65536, 64),
    ],
)
def test_one_kv_head_is_split_further_where_it_has_many_rows(heads: str, capacity: int, splits: int) -> None:
    assert chosen(f"b1 s{capacity}", heads=heads).num_splits == splits


def test_one_program_an_sm_has_as_many_bytes_in_flight_as_two() -> None:
    alone, paired, many = (chosen(f"b{batch} s4096") for batch in (16, 32, 64))
    assert [config.num_splits for config in (alone, paired, many)] == [1, 1, 1]
    assert alone.block_kv == many.block_kv == 2 * paired.block_kv
    assert alone.num_stages == paired.num_stages


def test_many_programs_over_short_caches_keep_small_tiles() -> None:
    assert chosen("b128 s2048").block_kv == chosen("b32 s2048").block_kv < chosen("b128 s4096").block_kv


@pytest.mark.parametrize(
    ("sizes", "heads", "mask", "block_kv", "warps"),
    [
        ("b64 s2048", "32q/8kv d128", "bool", 32, 1),
        ("b64 s2048", "32q/8kv d128", "none", 32, 1),
        ("b64 s2048", "32q/8kv d80", "bool", 32, 1),
        ("b64 s2048", "32q/8kv d64", "bool", 64, 1),
        ("b128 s1024", "28q/4kv d128", "bool", 32, 1),
        ("b64 s2048", "32q/8kv d128", "lengths page64", 32, 1),
        ("b64 s2048", "32q/8kv d128", "lengths page16", 32, 2),  # by pointers, which want registers
    ],
)
def test_three_or_four_programs_an_sm_run_all_at_once(
    sizes: str, heads: str, mask: str, block_kv: int, warps: int
) -> None:
    config = chosen(sizes, mask, heads)
    assert (config.num_splits, config.block_kv, config.num_warps) == (1, block_kv, warps)
    assert (config.load_path is LoadPath.POINTER) is (warps > 1)
    spec = parse_key(f"bfloat16 {heads} q1 {sizes} bhsd-tma {mask}").spec()
    assert 4 * config.num_stages * kv_tile_bytes(spec, block_kv) <= H200.shared_memory_bytes


@pytest.mark.parametrize(
    "name",
    [
        "32q/8kv d128 q1 b32 s2048 bhsd-tma bool",  # two programs an SM
        "32q/8kv d128 q1 b128 s2048 bhsd-tma bool",  # more than it can hold
        "32q/8kv d128 q1 b64 s4096 bhsd-tma bool",  # large tiles have time to come
        "32q/8kv d256 q1 b64 s2048 bhsd-tma bool",
        "64q/2kv d128 q1 b256 s2048 bhsd-tma bool",  # 32 query rows
    ],
)
def test_where_it_was_not_seen_to_pay_programs_have_several_warps(name: str) -> None:
    assert choose(parse_key(f"bfloat16 {name}").spec(), H200).num_warps > 1


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [
        ("b4 s32768", "32q/8kv d128"),
        ("b8 s8192", "32q/8kv d128"),
        ("b16 s32768", "32q/8kv d80"),
        ("b16 s8192", "320q/10kv d256"),  # 32 query rows, which are not streamed
    ],
)
def test_long_caches_of_a_batch_are_balanced(sizes: str, heads: str) -> None:
    assert chosen(sizes, heads=heads).partition is Partition.BALANCED


@pytest.mark.parametrize(
    ("sizes", "mask"),
    [
        ("b1 s131072", "bool"),  # nothing to balance
        ("b4 s32768", "none"),  # all sequences are as long
        ("b4 s8192", "bool"),  # splits are short already
        ("b16 s8192", "bool"),  # a program an SM is not waited for that long
        ("b64 s32768", "bool"),  # the hardware balances
    ],
)
def test_where_balancing_gains_nothing_splits_are_not_balanced(sizes: str, mask: str) -> None:
    assert chosen(sizes, mask).partition is not Partition.BALANCED


@pytest.mark.parametrize(
    ("sizes", "heads", "mask", "streams", "block_kv", "warps"),
    [
        ("b16 s8192", "32q/8kv d128", "bool", 16, 128, 8),  # a program an SM, one for each sequence
        ("b32 s8192", "28q/4kv d128", "bool", 32, 128, 8),
        ("b32 s8192", "64q/8kv d128", "bool", 32, 64, 4),  # two an SM
        ("b16 s8192", "40q/10kv d128", "bool", 26, 64, 4),  # more than one for each sequence
        ("b16 s4096", "32q/8kv d256", "bool", 16, 64, 8),
        ("b16 s4096", "32q/8kv d128", "lengths page64", 33, 64, 4),
        ("b16 s4096", "32q/8kv d128", "lengths page16", 33, 64, 4),
        ("b16 s2048", "16q/8kv d256", "bool", 16, 64, 8),
        ("b16 s8192", "20q/10kv d256", "bool", 26, 32, 4),
        ("b64 s8192", "8q/4kv d256", "bool", 64, 32, 4),
        ("b256 s8192", "8q/4kv d256", "bool", 66, 32, 4),  # more than run at once, of wide heads
        ("b64 s4096", "32q/8kv d128", "lengths page16", 33, 64, 4),  # and of pages
    ],
)
def test_as_many_programs_as_run_at_once_are_streamed(
    sizes: str, heads: str, mask: str, streams: int, block_kv: int, warps: int
) -> None:
    config = chosen(sizes, mask, heads)
    assert config.partition is Partition.STREAMED and config.launch_overlap
    assert (config.num_splits, config.block_kv, config.num_warps) == (streams, block_kv, warps)
    assert (config.load_path is LoadPath.POINTER) is ("page16" in mask)


@pytest.mark.parametrize(
    "name",
    [
        "32q/8kv d128 q1 b32 s8192 bhsd-tma none",  # all sequences are as long
        "32q/8kv d128 q1 b32 s8192 bhsd-tma bool growing",
        "32q/8kv d128 q1 b16 s4096 bhsd-tma bool",  # crossing costs a full cache more than it gains
        "32q/8kv d128 q1 b8 s8192 bhsd-tma bool",  # fewer programs than half the SMs
        "32q/8kv d128 q1 b64 s8192 bhsd-tma bool",  # the hardware balances
        "32q/1kv d128 q1 b128 s8192 bhsd-tma bool",  # 32 query rows
        "32q/8kv d128 q2 b16 s8192 bhsd-tma bool_rows",
        "32q/8kv d64 q1 b32 s8192 bhsd-tma bool",
        "32q/8kv d256 q1 b32 s4096 bhsd-tma bool",
        "16q/8kv d256 q1 b256 s8192 bhsd-tma bool",
        "32q/8kv d128 q1 b16 s2048 bshd-tma lengths page16",
        "32q/8kv d128 q1 b128 s2048 bshd-tma lengths page16",
        "32q/8kv d256 q1 b16 s8192 bshd-tma lengths page16",  # wide pages were not measured
    ],
)
def test_what_streaming_was_not_seen_to_pay_for_is_not_streamed(name: str) -> None:
    assert not choose(parse_key(f"bfloat16 {name}").spec(), H200).streams


@pytest.mark.parametrize("arch", [80, 89])
def test_smaller_gpus_stream_nothing(arch: int) -> None:
    assert not chosen("b16 s8192", device=REFERENCE_DEVICES[arch]).streams


def test_tiles_of_paged_caches_are_no_larger_than_pages_hold() -> None:
    config = chosen("b16 s2048", "lengths page64")
    assert (config.block_kv, config.load_path) == (64, LoadPath.TMA)


@pytest.mark.parametrize(("dtype", "arch"), [("float32", 90), ("bfloat16", 100)])
def test_many_query_rows_leave_no_registers_for_large_tiles(dtype: str, arch: int) -> None:
    few, many = (
        choose(parse_key(f"{dtype} 32q/8kv d128 q{q_len} b16 s4096 bhsd-tma bool").spec(), REFERENCE_DEVICES[arch])
        for q_len in (1, 16)
    )
    assert many.block_kv < few.block_kv


def test_many_query_rows_that_warpgroups_multiply_keep_large_tiles() -> None:
    name = "bfloat16 32q/8kv d128 q16 b16 s4096 bhsd-tma bool_rows"
    config = choose(parse_key(name).spec(), H200)
    assert (config.block_kv, config.num_warps, config.load_path) == (128, 8, LoadPath.TMA)


@pytest.mark.parametrize(
    ("sizes", "splits", "partition"),
    [
        ("b1 s8192", 64, Partition.STRIDED),
        ("b1 s131072", 128, Partition.STRIDED),
        ("b8 s2048", 16, Partition.STRIDED),
        ("b64 s4096", 2, Partition.STRIDED),
        ("b4 s32768", 33, Partition.BALANCED),
    ],
)
def test_32_query_rows_are_padded_and_have_one_program_an_sm(sizes: str, splits: int, partition: Partition) -> None:
    config = chosen(sizes, heads="32q/1kv d128")
    assert (config.operand_order, config.num_splits, config.partition) == (OperandOrder.QK64, splits, partition)
    assert (config.block_kv, config.num_warps, config.num_stages) == (64, 4, 3)


@pytest.mark.parametrize(
    "name",
    [
        "bfloat16 16q/1kv d128 q1 b16 s4096 bhsd-tma bool",
        "bfloat16 32q/1kv d64 q1 b16 s4096 bhsd-tma bool",
        "bfloat16 32q/1kv d256 q1 b16 s4096 bhsd-tma bool",
        "float32 32q/1kv d128 q1 b16 s4096 bhsd-tma bool",
        "bfloat16 8q/1kv d128 q4 b16 s4096 bhsd-tma bool_rows",
        "bfloat16 32q/1kv d128 q1 b16 s1024 bhsd-tma bool",
        "bfloat16 32q/1kv d128 q1 b128 s4096 bhsd-tma bool",
        "bfloat16 32q/1kv d128 q1 b16 s4096 bshd-tma lengths page64",
    ],
)
def test_rows_that_padding_was_not_seen_to_pay_for_are_not_padded(name: str) -> None:
    assert choose(parse_key(name).spec(), H200).operand_order is not OperandOrder.QK64


@pytest.mark.parametrize("arch", [80, 89, 100, 120])
def test_rows_are_padded_only_for_warpgroups(arch: int) -> None:
    config = chosen("b16 s4096", heads="32q/1kv d128", device=REFERENCE_DEVICES[arch])
    assert config.operand_order is not OperandOrder.QK64


def test_sms_without_a_program_are_worth_splitting_for_in_longer_caches() -> None:
    short, long = (chosen(f"b16 s{keys}", heads="15q/5kv d64") for keys in (1024, 2048))
    assert (short.num_splits, long.num_splits) == (1, 3)


def test_many_programs_over_the_shortest_caches_are_one_warp() -> None:
    shortest, longer = (chosen(f"b256 s{keys}") for keys in (128, 256))
    assert (shortest.num_warps, shortest.block_kv) == (1, 16)
    assert (longer.num_warps, longer.block_kv) == (4, 64)


def test_what_was_measured_on_one_gpu_is_not_taken_over_by_smaller_ones() -> None:
    small = REFERENCE_DEVICES[89]
    assert chosen("b16 s4096", device=small).block_kv <= 32


def test_short_caches_are_read_in_smaller_tiles_by_pointers() -> None:
    short, long = (chosen(f"b16 s{keys}") for keys in (512, 1024))
    assert (short.block_kv, short.load_path) == (64, LoadPath.POINTER)
    assert (long.block_kv, long.load_path) == (128, LoadPath.TMA)
