"""Taking quantised columns out of 16-bit units: two neighbouring columns of a cache row, the even one in the low byte,
or four of four bits each.

Every value of e4m3, e5m2 and int8 is a value of fp16, so unpacking rounds nothing: -0 keeps its sign, denormals are
kept (fp16 arithmetic flushes none), and NaN and infinity stay what they are. Of uint8 it is the value less 128, which
makes numbers about 0 of it for the price of int8.

Two numbers of four bits share a byte in one of two orders. ``interleaved``: byte i has column 2i in its low half,
2i + 1 in its high one. ``halves``: the low halves are the first half of the columns, the high ones the second.

Sources: PTX ISA, "cvt" (``cvt.rn.f16x2.e4m3x2``, sm_89 and later) and "prmt". Inline assembly takes the two units of a
32-bit register at a time, in whatever layout a tile has; elementwise, so that no layout is assumed.
"""

import triton
import triton.language as tl


@triton.jit
def unpack_by_assembly(units, FORMAT: tl.constexpr, HIGH: tl.constexpr):
    """As ``unpack_byte``, in a handful of PTX instructions for each two units."""
    if FORMAT == "e4m3":
        if HIGH:
            values = tl.inline_asm_elementwise(
                "{ .reg .b32 t; .reg .b16 l, h; prmt.b32 t, $1, 0, 0x4431; mov.b32 {l, h}, t;"
                " cvt.rn.f16x2.e4m3x2 $0, l; }",
                "=r,r", [units], dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            values = tl.inline_asm_elementwise(
                "{ .reg .b32 t; .reg .b16 l, h; prmt.b32 t, $1, 0, 0x4420; mov.b32 {l, h}, t;"
                " cvt.rn.f16x2.e4m3x2 $0, l; }",
                "=r,r", [units], dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
    elif FORMAT == "e5m2":
        # e5m2 is the upper half of fp16.
        if HIGH:
            values = tl.inline_asm_elementwise(
                "and.b32 $0, $1, 0xff00ff00;", "=r,r", [units], dtype=tl.float16, is_pure=True, pack=2
            )
        else:
            values = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, 0, 0x2404;", "=r,r", [units], dtype=tl.float16, is_pure=True, pack=2
            )
    elif FORMAT == "uint8":
        # 0x6400 + u is 1024 + u in fp16, and 0x6480 is 1024 + 128.
        if HIGH:
            values = tl.inline_asm_elementwise(
                "{ .reg .b32 t, m; mov.b32 m, 0x64806480; prmt.b32 t, $1, 0x64646464, 0x4341; sub.f16x2 $0, t, m; }",
                "=r,r", [units], dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            values = tl.inline_asm_elementwise(
                "{ .reg .b32 t, m, k; mov.b32 m, 0x64806480; mov.b32 k, 0x64006400;"
                " lop3.b32 t, $1, 0x00ff00ff, k, 0xea; sub.f16x2 $0, t, m; }",
                "=r,r", [units], dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
    else:
        # As uint8, of the value plus 128.
        if HIGH:
            values = tl.inline_asm_elementwise(
                "{ .reg .b32 t, m; mov.b32 m, 0x64806480; prmt.b32 t, $1, 0x64646464, 0x4341;"
                " xor.b32 t, t, 0x00800080; sub.f16x2 $0, t, m; }",
                "=r,r", [units], dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            values = tl.inline_asm_elementwise(
                "{ .reg .b32 t, m; mov.b32 m, 0x64806480; lop3.b32 t, $1, 0x00ff00ff, m, 0x6a; sub.f16x2 $0, t, m; }",
                "=r,r", [units], dtype=tl.float16, is_pure=True, pack=2,
            )  # fmt: skip
    return values


@triton.jit
def unpack_by_bits(units, FORMAT: tl.constexpr, HIGH: tl.constexpr):
    """As ``unpack_byte``, in operations that every target and the interpreter have."""
    bits = units.to(tl.uint16, bitcast=True)
    byte = bits >> 8 if HIGH else bits & 0xFF
    if FORMAT == "e4m3":
        # Exponent and mantissa moved into fp16's places are a 256th of the value, denormals included. 0x7F, the only
        # NaN, is where adding 1 reaches the sign's place; fp16's NaN has all exponent bits set.
        magnitude = byte & 0x7F
        nan = ((magnitude + 1) & 0x80) * 0xF8
        values = (((byte & 0x80) << 8) | (magnitude << 7) | nan).to(tl.float16, bitcast=True) * 256.0
    elif FORMAT == "e5m2":
        values = (byte << 8).to(tl.float16, bitcast=True)
    elif FORMAT == "uint8":
        values = byte.to(tl.float16) - 128.0
    else:
        values = (byte ^ 0x80).to(tl.float16) - 128.0
    return values.to(tl.float16)


@triton.jit
def unpack_byte(units, FORMAT: tl.constexpr, HIGH: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The low or high byte of every int16 unit as fp16, exactly. FORMAT is ``e4m3``, ``e5m2``, ``int8`` or
    ``uint8``, of which it is the byte less 128."""
    if ASSEMBLY:
        values = unpack_by_assembly(units, FORMAT, HIGH)
    else:
        values = unpack_by_bits(units, FORMAT, HIGH)
    return values


@triton.jit
def unpack_nibble(units, FORMAT: tl.constexpr, NIBBLE: tl.constexpr):
    """Bits 4 * NIBBLE to 4 * NIBBLE + 3 of every int16 unit as fp16: of unsigned formats the number less 8."""
    bits = (units.to(tl.uint16, bitcast=True) >> (4 * NIBBLE)) & 0xF
    if FORMAT == "int4_interleaved" or FORMAT == "int4_halves":
        bits = bits ^ 8
    return bits.to(tl.float16) - 8.0


@triton.jit
def unpack_columns(units, FORMAT: tl.constexpr, ODD: tl.constexpr, ASSEMBLY: tl.constexpr, PACKED: tl.constexpr):
    """The even or odd columns of a tile (keys, units) as fp16, in the order of ``even_columns``: (keys, units), or
    twice as many columns where PACKED says that they have four bits."""
    if PACKED:
        # Columns next to each other in a unit, or a half row apart.
        if FORMAT == "int4_interleaved" or FORMAT == "uint4_interleaved":
            first = unpack_nibble(units, FORMAT, 1 if ODD else 0)
            second = unpack_nibble(units, FORMAT, 3 if ODD else 2)
        else:
            first = unpack_nibble(units, FORMAT, 2 if ODD else 0)
            second = unpack_nibble(units, FORMAT, 3 if ODD else 1)
        values = tl.join(first, second).reshape([units.shape[0], 2 * units.shape[1]])
    else:
        values = unpack_byte(units, FORMAT, ODD, ASSEMBLY)
    return values


@triton.jit
def even_columns(COUNT: tl.constexpr, DIM: tl.constexpr, FORMAT: tl.constexpr):
    """Which of DIM columns the even ones of a tile are, (COUNT,); each odd one follows its even one."""
    pairs = tl.arange(0, COUNT)
    if FORMAT == "int4_halves" or FORMAT == "uint4_halves":
        columns = pairs // 2 * 2 + pairs % 2 * (DIM // 2)
    else:
        columns = pairs * 2
    return columns
