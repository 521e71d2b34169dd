"""Products of two tiles, alike on a GPU and in Triton's interpreter."""

import triton
import triton.language as tl


@triton.jit
def multiply(a, b, accumulator, UPCAST: tl.constexpr):
    """a @ b in fp32, added to ``accumulator`` unless it is None. Triton's interpreter computes garbage for bf16
    operands without saying so, hence UPCAST there. fp32 operands are not rounded to tf32, as in PyTorch's default."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    if accumulator is None:
        return tl.dot(a, b, input_precision="ieee")
    return tl.dot(a, b, accumulator, input_precision="ieee")
