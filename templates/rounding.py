"""Rounding fp32 results to the dtype that is stored or multiplied, alike on a GPU and in Triton's interpreter."""

import triton
import triton.language as tl


@triton.jit
def round_to(x, DTYPE: tl.constexpr, EMULATED: tl.constexpr):
    """fp32 ``x`` as DTYPE, rounded to nearest even.

    Triton 3.6's interpreter drops the low bits when it casts fp32 to bf16 (``_convert_float`` in
    triton/runtime/interpreter.py), which is twice the error, and towards zero; so there the bits are rounded first.
    """
    if EMULATED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(DTYPE)
