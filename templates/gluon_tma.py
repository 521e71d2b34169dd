"""Gluon's load by TMA, under the name that it has had since Triton 3.9 took the older one away."""

from triton.experimental.gluon.language.nvidia.hopper import tma

async_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
