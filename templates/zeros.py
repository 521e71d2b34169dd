"""Zero points of a quantised cache, without dequantising it: what they add to scores, and to every column of a result.

A token's zero z is one number. Where it is subtracted ``before`` scaling, a value is (n - z) * s; where it is added
``after`` (a minimum), n * s + z. Kernels unpack n - CENTRE.
"""

import triton
import triton.language as tl


@triton.jit
def zeros_of_keys(zero, query_sum, AFTER: tl.constexpr, CENTRE: tl.constexpr):
    """What K's zeros (keys,) add to scores (keys, rows) before these are scaled. ``query_sum`` (rows,) is the sum of
    the queries' columns, in the units that the products are made in. A minimum is added to scaled scores, times
    ``score_sum``, which is the same sum in the units of these: here its keys only get their CENTRE back."""
    if AFTER:
        added = CENTRE * query_sum[None, :]
    else:
        added = (CENTRE - zero)[:, None] * query_sum[None, :]
    return added


@triton.jit
def zeros_of_values(
    probabilities, weights, zero, scale, unit, AFTER: tl.constexpr, CENTRE: tl.constexpr, V_RANGE: tl.constexpr
):  # fmt: skip
    """What V's zeros and scales (keys,) add to every column of the accumulator's rows, in the values' own units.

    ``weights`` (keys, rows), times ``unit`` the probabilities times the scales, are what the product used: rounded to
    fp16. If a value is (n + c) * s + r, then c is to be weighted alike, so that what rounding a weight errs is in
    proportion to n + c and not to n alone, and r by the probability itself. With c no larger than V_RANGE, beyond which
    no n lies, |n + c| * |s| is at most the size of the value: rounding weights errs no more than rounding V would."""
    if AFTER:
        total = zero + CENTRE * scale
        shift = total / tl.where(scale == 0.0, 1.0, scale)
        shift = tl.where(scale == 0.0, 0.0, tl.minimum(tl.maximum(shift, -V_RANGE), V_RANGE))
        rest = total - shift * scale
    else:
        shift = tl.minimum(tl.maximum(CENTRE - zero, -V_RANGE), V_RANGE)
        rest = (CENTRE - zero - shift) * scale
    return tl.sum(weights * (shift * unit)[:, None] + probabilities * rest[:, None], 0)
