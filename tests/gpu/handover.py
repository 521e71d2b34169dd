"""A kernel of nothing but what two warp groups hand to one another, to see what racecheck makes of that alone:

    compute-sanitizer --tool racecheck --num-cuda-barriers 64 python -m tests.gpu.handover [--no-wait]

With --no-wait the receiving group does not wait: a race, and a wrong sum."""

from __future__ import annotations

import sys

import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

COLUMNS = gl.constexpr(128)
LAYOUT = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))
FULL = gl.constexpr(0)
EMPTY = gl.constexpr(1)


@gluon.jit
def receiver(vector, bars, out_ptr, times, WAIT: gl.constexpr):
    total = gl.zeros([COLUMNS], gl.float32, LAYOUT)
    phase = 0
    for _ in range(times):
        if WAIT:
            mbarrier.wait(bars.index(FULL), phase)
        total = total + vector.load(LAYOUT)
        tl.debug_barrier()
        mbarrier.arrive(bars.index(EMPTY), count=1)
        phase ^= 1
    gl.store(out_ptr + gl.arange(0, COLUMNS, LAYOUT), total)


@gluon.jit
def sender(vector, bars, in_ptr, times):
    phase = 1
    content = gl.load(in_ptr + gl.arange(0, COLUMNS, LAYOUT))
    for time in range(times):
        mbarrier.wait(bars.index(EMPTY), phase)
        vector.store(content + time)
        fence_async_shared()
        tl.debug_barrier()
        mbarrier.arrive(bars.index(FULL), count=1)
        phase ^= 1


@gluon.jit
def handover(in_ptr, out_ptr, times, WAIT: gl.constexpr):
    vector = gl.allocate_shared_memory(gl.float32, [COLUMNS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    bars = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(bars.index(FULL), count=1)
    mbarrier.init(bars.index(EMPTY), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [(sender, (vector, bars, in_ptr, times)), (receiver, (vector, bars, out_ptr, times, WAIT))], [4], [128]
    )


def main() -> None:
    wait = "--no-wait" not in sys.argv[1:]
    times = 5 if wait else 1
    given = torch.randn(COLUMNS.value)
    out = torch.empty(COLUMNS.value, device="cuda")
    handover[(2,)](given.cuda(), out, times, WAIT=wait, num_warps=4)
    wanted = given * times + sum(range(times))
    print(f"largest difference: {(out.cpu() - wanted).abs().max().item():.3g}")


if __name__ == "__main__":
    main()
