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


@triton.jit
def sum_of_products(a, b, CHAINS: tl.constexpr):
    """a @ b.T in fp32, where both are CHAINS tiles of as many columns. A product of fp32 is a chain of additions, each
    of which rounds what was added so far: shorter chains round less."""
    total = multiply(a[0], tl.trans(b[0]), None, False)
    for part in tl.static_range(1, CHAINS):
        # A plain sum would make one chain of them again: Triton rewrites dot(a, b) + c as dot(a, b, c).
        total = tl.fma(multiply(a[part], tl.trans(b[part]), None, False), 1.0, total)
    return total
