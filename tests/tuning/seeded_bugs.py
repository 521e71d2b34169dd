"""Kernels that are wrong in one way each, and a key and configuration under which each is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from prefetch_compiler.config import KernelConfig, LoadPath, Merge, OperandOrder, Partition
from prefetch_compiler.database.key import Alignment, Feature, Layout, MaskClass, TuningKey
from prefetch_compiler.tuning.caches import quantised_key

from .mutants import Bug

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# In the interpreter every program costs milliseconds; a GPU can afford lengths around every size of tile.
CAPACITY = 1024 if DEVICE.type == "cuda" else 32

BOOL = TuningKey(
    dtype="float16", kv_dtype="float16", group=2, kv_heads=2, head_dim=16, value_dim=24, q_len_bucket=1, batch_bucket=4,
    capacity_bucket=CAPACITY, layout=Layout.BHSD, alignment=Alignment.TMA, mask=MaskClass.BOOL,
)  # fmt: skip
ROWS = replace(BOOL, mask=MaskClass.BOOL_ROWS, q_len_bucket=2)
ADDITIVE = replace(BOOL, mask=MaskClass.ADDITIVE, mask_dtype="float16")
PLAIN = replace(BOOL, mask=MaskClass.NONE)
# More tiles than splits.
LONGER = replace(BOOL, capacity_bucket=max(64, CAPACITY))
# Whose values are merged by two programs a row, where eight splits are.
WIDE_VALUES = replace(BOOL, kv_heads=1, value_dim=256, capacity_bucket=max(128, CAPACITY))
PAGE16 = replace(BOOL, kv_heads=1, mask=MaskClass.LENGTHS, features=(Feature.PAGE16,))
CAUSAL_PAGE16 = replace(PAGE16, mask=MaskClass.CAUSAL_LENGTHS, q_len_bucket=4)
PAGE64 = replace(PAGE16, capacity_bucket=LONGER.capacity_bucket, features=(Feature.PAGE64,))
CAUSAL = replace(BOOL, mask=MaskClass.CAUSAL, q_len_bucket=4)
CAPPED = replace(BOOL, kv_heads=1, features=(Feature.SINK, Feature.SOFTCAP))

ONE_SPLIT = KernelConfig(block_kv=16, num_splits=1, num_warps=4, num_stages=2)
SPLIT = replace(ONE_SPLIT, num_splits=3)
IN_PLACE = replace(SPLIT, merge=Merge.INPLACE)
STRIDED = replace(SPLIT, partition=Partition.STRIDED)
EIGHT_SPLITS = replace(SPLIT, num_splits=8)
CHUNKED = replace(SPLIT, partition=Partition.CHUNKED)
BALANCED = replace(SPLIT, partition=Partition.BALANCED)
STREAMED = replace(SPLIT, partition=Partition.STREAMED)
TMA = replace(ONE_SPLIT, load_path=LoadPath.TMA)
KEYS_FIRST = replace(SPLIT, num_splits=2, operand_order=OperandOrder.KQ)
KEYS_FIRST_TMA = replace(KEYS_FIRST, load_path=LoadPath.TMA)
# Rows of 16 and 32 bytes, which TMA takes.
QUANTISED_BOOL = replace(
    quantised_key(replace(BOOL, kv_heads=1), "e4m3", "token"), value_dim=32, alignment=Alignment.TMA
)
QUANTISED_HEAD = replace(quantised_key(BOOL, "e4m3", "head"), value_dim=32, alignment=Alignment.TMA)
QUANTISED_CAPPED = replace(
    QUANTISED_BOOL, features=(Feature.KEY_TOKEN_SCALES, Feature.SINK, Feature.SOFTCAP, Feature.VALUE_TOKEN_SCALES)
)
QUANTISED_PAGE16 = replace(quantised_key(PAGE16, "e4m3", "token"), value_dim=32, alignment=Alignment.TMA)
QUANTISED_PAGE64 = replace(quantised_key(PAGE64, "e4m3", "token"), value_dim=32, alignment=Alignment.TMA)
QUANTISED_SPLIT = replace(SPLIT, num_splits=2, num_warps=2, operand_order=OperandOrder.KQ)
QUANTISED_ONE = replace(QUANTISED_SPLIT, num_splits=1)
QUANTISED_TMA = replace(QUANTISED_ONE, load_path=LoadPath.TMA)
LATENT_BOOL = replace(BOOL, kv_heads=1, head_dim=32, value_dim=32, features=(Feature.ROPE16,))
LATENT_ROWS = replace(LATENT_BOOL, mask=MaskClass.BOOL_ROWS, q_len_bucket=2, layout=Layout.STRIDED)
LATENT_TMA = replace(KEYS_FIRST_TMA, partition=Partition.STRIDED)
RIGHT = {
    "bool, one split": (BOOL, ONE_SPLIT),
    "bool, split": (BOOL, SPLIT),
    "bool, in place": (BOOL, IN_PLACE),
    "bool, strided": (BOOL, STRIDED),
    "bool, chunked": (BOOL, CHUNKED),
    "bool, balanced": (BOOL, BALANCED),
    "bool, balanced in place": (BOOL, replace(BALANCED, merge=Merge.INPLACE)),
    "bool, streamed": (BOOL, STREAMED),
    "bool, streamed in place": (BOOL, replace(STREAMED, merge=Merge.INPLACE)),
    "bool, wide values, eight splits": (WIDE_VALUES, EIGHT_SPLITS),
    "bool, TMA": (BOOL, TMA),
    "bool, keys first": (BOOL, KEYS_FIRST),
    "rows": (ROWS, ONE_SPLIT),
    "additive": (ADDITIVE, SPLIT),
    "no mask": (PLAIN, SPLIT),
    "causal": (CAUSAL, ONE_SPLIT),
    "pages": (PAGE16, replace(ONE_SPLIT, block_kv=32)),
    "pages, causal, capped, with sinks": (
        replace(CAUSAL_PAGE16, features=(*CAUSAL_PAGE16.features, Feature.SINK, Feature.SOFTCAP)), ONE_SPLIT,
    ),
    "capped, with sinks, in place": (CAPPED, IN_PLACE),
    "quantised, split, capped, with sinks": (QUANTISED_CAPPED, QUANTISED_SPLIT),
    "quantised pages by TMA": (QUANTISED_PAGE64, QUANTISED_TMA),
    "latent by TMA, keys first, rows": (LATENT_ROWS, LATENT_TMA),
}  # fmt: skip


@dataclass(frozen=True)
class SeededBug:
    key: TuningKey
    config: KernelConfig
    bugs: tuple[Bug, ...]


def decode(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("split_kv_decode", old, new),))


def attend(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("attend", old, new),))


def results(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("results", old, new),))


def merge(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("merge_splits", old, new),))


def quantised(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("quantised_decode", old, new),))


def latent(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("latent_decode", old, new),))


def masking(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("masking", old, new),))


def heads(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("heads", old, new),))


def softmax(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("softmax", old, new),))


def paging(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("paging", old, new),))


def plan(key: TuningKey, config: KernelConfig, old: str, new: str) -> SeededBug:
    return SeededBug(key, config, (Bug("split_plan", old, new),))


SEEDED_BUGS: dict[str, SeededBug] = {
    "dropped mask": masking(
        BOOL, ONE_SPLIT, 'bias = tl.where(tl.load(pointers, mask=needed, other=1) != 0, 0.0, float("-inf"))', "pass"
    ),
    "dropped bias": masking(ADDITIVE, ONE_SPLIT, "bias = tl.load(pointers", "bias = 0 * tl.load(pointers"),
    "dropped mask by row": masking(ROWS, ONE_SPLIT, "tl.load(pointers, mask=wanted, other=1) != 0", "rows >= -1"),
    "one mask for all queries": attend(
        ROWS, ONE_SPLIT, "row_query * mask_row_stride", "0 * mask_row_stride"
    ),
    "one mask for all heads": attend(
        ROWS, ONE_SPLIT, "row_head.to(tl.int64) * mask_head_stride", "0 * mask_head_stride"
    ),
    "clean range taken to begin with the first key": attend(
        BOOL, ONE_SPLIT, "(keys < clean_first) | (keys >= clean_end)", "(keys >= clean_end)"
    ),
    "tail too long by one": attend(BOOL, ONE_SPLIT, "keys < end", "keys <= end"),
    "tail too short by one": plan(
        BOOL, ONE_SPLIT, "tl.load(row + 1, volatile=VOLATILE)", "tl.load(row + 1, volatile=VOLATILE) - 1"
    ),
    "head late by one": plan(
        BOOL, ONE_SPLIT, "tl.load(row, volatile=VOLATILE), 0)", "tl.load(row, volatile=VOLATILE) + 1, 0)"
    ),
    "last tile dropped": plan(PLAIN, ONE_SPLIT, "end - first + BLOCK_KV - 1, 0)", "end - first, 0)"),
    "the first tile's page for all": attend(PAGE16, ONE_SPLIT, "pages = next_pages", "pages = pages"),
    "every tile from its page's first row": paging(PAGE64, ONE_SPLIT, "first % PAGE_SIZE + tl", "0 + tl"),
    "every tile from its page's first row by TMA": attend(PAGE64, TMA, "head, first % PAGE_SIZE, 0]", "head, 0, 0]"),
    "rows beyond their page": paging(
        PAGE16, replace(ONE_SPLIT, block_kv=32), "(first + tl.arange(0, BLOCK_KV)) % PAGE_SIZE",
        "(first % PAGE_SIZE + tl.arange(0, BLOCK_KV))",
    ),
    "lengths short by one": plan(
        PAGE16, ONE_SPLIT, "tl.maximum(tl.load(lengths_ptr + sequence", "tl.maximum(-1 + tl.load(lengths_ptr + sequence"
    ),
    "the next query's key seen": attend(
        CAUSAL_PAGE16, ONE_SPLIT, "row_query + (end_key - q_len)", "row_query + 1 + (end_key - q_len)"
    ),
    "causal among the capacity's last keys": attend(
        CAUSAL_PAGE16, ONE_SPLIT, "row_query + (end_key - q_len)", "row_query + (table_stride * PAGE_SIZE - q_len)"
    ),
    "last tile dropped by TMA": attend(BOOL, TMA, "if PEEL and (whole_end < limit)", "if PEEL and (whole_end < 0)"),
    "last split dropped": merge(
        BOOL, SPLIT, "num_splits, BLOCK_KV, PARTITION)\n", "num_splits, BLOCK_KV, PARTITION) - 1\n"
    ),
    "strided splits that skip tiles": plan(
        LONGER, STRIDED, "step = num_splits * BLOCK_KV", "step = (num_splits + 1) * BLOCK_KV"
    ),
    "chunks that overlap": plan(BOOL, CHUNKED, "begin = first + split * share", "begin = first + split * (share - 1)"),
    "balanced splits beyond those of the batch": plan(
        LONGER, replace(BALANCED, num_splits=2), "full_splits = tl.maximum(batch * (num_splits - 1), 1)",
        "full_splits = 8 * batch * num_splits"
    ),
    "balanced splits counted from the next sequence's": plan(
        BOOL, BALANCED, "return tl.sum(tl.where(own, up_to, 0), 0) - count, count",
        "return tl.sum(tl.where(own, up_to, 0), 0), count",
    ),
    "streamed programs that skip a tile": decode(
        LONGER, STREAMED, "tl.maximum(begin - start, 0)", "tl.maximum(begin - start + 1, 0)"
    ),
    "streamed programs that stop at a sequence's end": decode(
        BOOL, STREAMED, "last_sequence - first_sequence + 1", "tl.minimum(last_sequence - first_sequence + 1, 1)"
    ),
    "tiles of no streamed program": plan(
        LONGER, STREAMED, "(total + programs - 1) // programs", "tl.maximum(total // programs, 1)",
    ),
    "streamed results in one place": plan(LONGER, STREAMED, "+ program + sequence", "+ sequence"),
    "a streamed sequence merged although one program had it": merge(
        BOOL, STREAMED, "first_program < last_program", "first_program <= last_program"
    ),
    "zeros of no streamed program": plan(BOOL, STREAMED, "tl.maximum(tiles, 1)", "tiles"),
    "keys of no split": plan(
        LONGER, SPLIT,
        "(tiles + num_splits - 1) // num_splits", "tl.maximum(tiles // num_splits, 1)",
    ),
    "stale accumulator": attend(BOOL, ONE_SPLIT, "    accumulator *= along_keys(shrink, KEYS_AXIS)\n", ""),
    "total not rescaled": softmax(BOOL, ONE_SPLIT, "total * shrink + tl.sum", "total + tl.sum"),
    "rescaled by a little too little": softmax(
        BOOL, ONE_SPLIT, "shrink = tl.exp2(maximum - reference)", "shrink = tl.exp2((maximum - reference) * 0.97)"
    ),
    "wrong scale": attend(BOOL, ONE_SPLIT, "scores = scores * score_scale", "scores = scores * score_scale * 1.02"),
    "scale of another base when merging": merge(ADDITIVE, SPLIT, "* EXP2_SCALE)", "* 1.0)"),
    "query heads interleaved": heads(
        BOOL, ONE_SPLIT, "row < rows, kv_head * GROUP + row // q_len", "row < rows, kv_head + row // q_len * 2"
    ),
    "one KV head for all": heads(BOOL, ONE_SPLIT, "kv_head.to(tl.int64) * head_stride", "0 * head_stride"),
    "K of the first sequence": attend(
        BOOL, ONE_SPLIT, "k_head_ptr = head_start(k_ptr, sequence,", "k_head_ptr = head_start(k_ptr, sequence * 0,"
    ),
    "merge reads what nobody wrote": merge(
        BOOL, SPLIT, "tl.where((splits < active)[:, None], partials, 0.0)", "partials"
    ),
    "merge of the first columns for all": merge(
        WIDE_VALUES, EIGHT_SPLITS, "tl.program_id(1) * COLUMNS + tl.arange", "tl.arange"
    ),
    "merge without the others' arrival": results(
        BOOL, IN_PLACE, "arrived == splits - 1", "arrived == 0"
    ),
    "merge in place forgets one": results(
        BOOL, IN_PLACE, "inside = (split < active)", "inside = (split < active - 1)"
    ),
    "writes past the output": results(
        BOOL, ONE_SPLIT, "inside = along_keys(row_valid, KEYS_AXIS) & tl.expand",
        "inside = along_keys(row_valid | True, KEYS_AXIS) & tl.expand",
    ),
    "columns past the values": results(
        BOOL, ONE_SPLIT, "tl.expand_dims(columns < VALUE_DIM, 1 - KEYS_AXIS)",
        "tl.expand_dims(columns < BLOCK_DV, 1 - KEYS_AXIS)",
    ),
    "bounds ignored": plan(
        BOOL, ONE_SPLIT, "        clean_end = tl.load(row + 3)\n",
        "        clean_end = tl.load(row + 3)\n        first = kv_len * 0\n        end = kv_len\n",
    ),
    "bounds of the first sequence": plan(BOOL, ONE_SPLIT, "sequence * bounds_stride", "sequence * 0"),
    "NaN let in by TMA": attend(
        BOOL, KEYS_FIRST_TMA, "tile = tl.where((keys < end)[:, None], tile, 0.0)", "tile = tile"
    ),
    "NaN let in by pointers": attend(
        BOOL, ONE_SPLIT, "mask=(keys < end)[:, None] & (columns < DIM)[None, :]", "mask=(columns < DIM)[None, :]"
    ),
    "NaN for sequences that see nothing": results(BOOL, ONE_SPLIT, "tl.where(total == 0.0, 1.0, total)", "total"),
    "NaN for rows that see nothing": softmax(
        ROWS, ONE_SPLIT, 'tl.where(maximum == float("-inf"), 0.0, maximum)', "maximum"
    ),
    "causal past the diagonal": attend(
        CAUSAL, ONE_SPLIT, "<= along_keys(row_query, KEYS_AXIS)", "<= along_keys(row_query, KEYS_AXIS) + 1"
    ),
    "dropped soft cap": attend(
        CAPPED, ONE_SPLIT, "scores = soft_cap(scores * score_scale, softcap)", "scores = scores * score_scale"
    ),
    "a sink in every split": attend(
        CAPPED, SPLIT, "tl.where(has_sink, GROUP * q_len, 0), EXP2_SCALE", "GROUP * q_len, EXP2_SCALE"
    ),
    "one sink for all heads": softmax(CAPPED, ONE_SPLIT, "sink_ptr + row_head", "sink_ptr + 0 * row_head"),
    "sinks of another base": softmax(
        CAPPED, ONE_SPLIT, "sink * (1.4426950408889634 / EXP2_SCALE)", "sink * 1.4426950408889634"
    ),
    "dropped soft cap over a quantised cache": quantised(
        QUANTISED_CAPPED, QUANTISED_ONE, "scores = soft_cap(scores, softcap)", "pass"
    ),
    "a sink in every split of a quantised cache": quantised(
        QUANTISED_CAPPED, QUANTISED_SPLIT, "tl.where(split == 0, rows, 0), EXP2_SCALE", "rows, EXP2_SCALE"
    ),
    "dropped mask over a quantised cache": masking(
        QUANTISED_BOOL, QUANTISED_ONE,
        'bias = tl.where(tl.load(pointers, mask=needed, other=1) != 0, 0.0, float("-inf"))', "pass",
    ),
    "odd columns of K with the even ones of Q": quantised(
        QUANTISED_BOOL, QUANTISED_ONE, "multiply(k_odd, q_odd", "multiply(k_odd, q_even",
    ),
    "odd columns of V for the even ones": quantised(
        QUANTISED_BOOL, QUANTISED_ONE, "tl.trans(v_even)", "tl.trans(v_odd)",
    ),
    "scales of K dropped": quantised(
        QUANTISED_BOOL, QUANTISED_ONE, "scores *= k_scale[:, None]", "pass"
    ),
    "one scale of K for all heads": quantised(
        QUANTISED_HEAD, QUANTISED_ONE, "k_scale_batch_stride, k_scale_head_stride, 1",
        "k_scale_batch_stride, 0 * k_scale_head_stride, 1",
    ),
    "accumulators not taken to a larger scale of V": quantised(
        replace(QUANTISED_BOOL, capacity_bucket=LONGER.capacity_bucket), QUANTISED_ONE,
        "shrink *= peak / new_peak", "pass",
    ),
    "largest scale of V not given back": quantised(
        QUANTISED_BOOL, QUANTISED_ONE, "result_scale *= peak", "result_scale *= 1.0"
    ),
    "the first tile's page for all of a quantised cache": quantised(
        QUANTISED_PAGE16, QUANTISED_ONE, "pages = next_pages", "pages = pages"
    ),
    "scales of every key from its page's first": quantised(
        QUANTISED_PAGE64, QUANTISED_TMA, "page_stride, STRIDE, BLOCK_KV", "page_stride, 0, BLOCK_KV"
    ),
    "last tile of a quantised cache dropped by TMA": quantised(
        QUANTISED_BOOL, QUANTISED_TMA, "if PEEL and (whole_end < limit)", "if PEEL and (whole_end < 0)"
    ),
    "NaN of a quantised cache let in": quantised(
        QUANTISED_BOOL, QUANTISED_TMA, "mask=(first + rows < end)[:, None] & (columns < UNITS)[None, :]",
        "mask=(columns < UNITS)[None, :]",
    ),
    "partial results of a quantised cache in one place": quantised(
        QUANTISED_BOOL, QUANTISED_SPLIT, "slot = (sequence.to(tl.int64) * KV_HEADS + kv_head) * num_splits + split",
        "slot = (sequence.to(tl.int64) * KV_HEADS + kv_head) * num_splits",
    ),
    "dropped rotary keys": latent(
        LATENT_BOOL, ONE_SPLIT, "scores = multiply(q_rope, tl.trans(rope), scores, UPCAST)", "pass"
    ),
    "rotary columns of the query from its first": latent(
        LATENT_BOOL, ONE_SPLIT, "rope_columns = LATENT_DIM + tl", "rope_columns = 0 + tl"
    ),
    "rotary keys of the first sequence": latent(
        LATENT_BOOL, ONE_SPLIT, "head_start(rope_ptr, sequence,", "head_start(rope_ptr, sequence * 0,"
    ),
    "dropped mask by row over a latent cache": latent(
        LATENT_ROWS, ONE_SPLIT, "mask_rows = tl.where(row_valid, mask_rows, -1)", "mask_rows = mask_rows * 0 - 1"
    ),
    "NaN of a latent cache let in by TMA": latent(
        LATENT_BOOL, KEYS_FIRST_TMA, "tile = tl.where((keys < end)[:, None], tile, 0.0)", "tile = tile"
    ),
    "partial results of a latent cache in one place": latent(
        LATENT_BOOL, SPLIT, "slot = sequence.to(tl.int64) * num_splits + split",
        "slot = sequence.to(tl.int64) * num_splits",
    ),
}  # fmt: skip

_WAIT = "    if LAUNCH_OVERLAP:\n        gdc_wait()\n"
_NO_WAIT = "    if LAUNCH_OVERLAP:\n"
# What takes programs that run at the same time, or more keys than the interpreter gets through.
GPU_BUGS: dict[str, SeededBug] = {
    "merge by the last split, not the last to finish": results(
        BOOL, replace(IN_PLACE, num_splits=8), "arrived == splits - 1",
        "slot - first_slot == splits - 1",
    ),
    "merge that does not wait for the splits": merge(
        BOOL, replace(SPLIT, num_splits=8, launch_overlap=True), _WAIT, _NO_WAIT
    ),
    "accumulated in the inputs' dtype": attend(
        BOOL, ONE_SPLIT, "    probabilities = round_to(",
        "    accumulator = accumulator.to(v.dtype).to(tl.float32)\n    probabilities = round_to(",
    ),
}  # fmt: skip
