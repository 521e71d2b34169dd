"""Online softmax (Milakov and Gimelshein, arXiv 1805.02867) with query rows on either axis of the score tile."""

import triton
import triton.language as tl


@triton.jit
def along_keys(per_row, KEYS_AXIS: tl.constexpr):
    """Broadcast a per-query-row vector along the axis that holds keys (or value columns)."""
    return tl.expand_dims(per_row, KEYS_AXIS)


@triton.jit
def finite_maximum(maximum):
    """0 in place of -inf, so that rows that have seen no key give exp(-inf - 0) = 0 and not NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def soft_cap(scores, softcap):
    """softcap * tanh(scores / softcap), by exp2: 2 / ln(2) of the argument; where it overflows, tanh is 1. The cap may
    be an fp64 (DOUBLE_SCALARS)."""
    cap = tl.cast(softcap, tl.float32)
    return cap * (1.0 - 2.0 / (1.0 + tl.exp2(scores / cap * 2.8853900817779268)))


@triton.jit
def sink_statistics(sink_ptr, row_head, wanted, EXP2_SCALE: tl.constexpr):
    """Maximum and total of rows before the first key. A sink is a key without a value: the split that is ``wanted`` to
    starts as if it had seen it. Scores times EXP2_SCALE are powers of two."""
    sink = tl.load(sink_ptr + row_head, mask=wanted, other=float("-inf")).to(tl.float32)
    return sink * (1.4426950408889634 / EXP2_SCALE), tl.where(sink == float("-inf"), 0.0, 1.0)


@triton.jit
def store_lse(lse_ptr, maximum, total, row, row_valid, EXP2_SCALE: tl.constexpr):
    """Natural log-sum-exps of rows at ``lse_ptr + row``, -inf where a row saw no key. The maximum is brought to natural
    units by one factor, which is 1 where it is not a power of two's: times log2(e), finfo.min would overflow."""
    seen = total > 0.0
    logarithm = tl.log(tl.where(seen, total, 1.0)) + maximum * (EXP2_SCALE * 0.6931471805599453)
    tl.store(lse_ptr + row, tl.where(seen, logarithm, float("-inf")), mask=row_valid)


@triton.jit
def online_softmax(scores, maximum, total, EXP2_SCALE: tl.constexpr, KEYS_AXIS: tl.constexpr):
    """One step: returns unnormalised probabilities of this tile, new maximum and total, and the factor by which
    what was accumulated before must shrink. Scores times EXP2_SCALE are powers of two."""
    new_maximum = tl.maximum(maximum, tl.max(scores, KEYS_AXIS))
    reference = finite_maximum(new_maximum)
    if EXP2_SCALE == 1.0:
        shrink = tl.exp2(maximum - reference)
        probabilities = tl.exp2(scores - along_keys(reference, KEYS_AXIS))
    else:
        shrink = tl.exp2((maximum - reference) * EXP2_SCALE)
        probabilities = tl.exp2((scores - along_keys(reference, KEYS_AXIS)) * EXP2_SCALE)
    return probabilities, new_maximum, total * shrink + tl.sum(probabilities, KEYS_AXIS), shrink
