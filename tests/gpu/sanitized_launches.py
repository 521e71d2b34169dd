"""Launches every kernel that this GPU can run, one small case for each template and feature, for compute-sanitizer to
watch: PyTorch allocates and copies, and computes on the CPU. ``python -m tests.gpu.sanitize`` runs it under each tool.

Prints ``case: NAME`` before each launch, and ``done: N`` after the last. Arguments: what names must have
in them, which share of those it is, and of how many shares."""

from __future__ import annotations

import faulthandler
import sys
from dataclasses import fields, replace

import torch
from torch import Tensor

from prefetch_compiler.bench.numerics.contents import normal
from prefetch_compiler.bench.numerics.group import GROUPS, Group, Sizes, runnable
from prefetch_compiler.bench.numerics.problem import Cases, build
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.device import current_device, interpreting, profile
from prefetch_compiler.lower.launch import launch_decode

from ..contract.poison import uninitialised_is_nan

# The last tile is partly beyond the capacity, where there is nothing: an allocation ends with the cache.
SIZES = Sizes(head_dim=64, capacity=208, latent_dim=512, rope_dim=64)
INTERPRETER_SIZES = Sizes(head_dim=16, capacity=48, latent_dim=32, rope_dim=16)
# Empty, one key, all but one, all.
HELD = (0, 1, -1, None)
# After which it says where it is, again and again: under a tool that could be anywhere.
SILENT_S = 100


def cases_of(group: Group, sizes: Sizes, device: torch.device) -> tuple[Cases, KernelConfig] | None:
    """Operands on ``device``, made on the CPU, and the configuration; None where the device cannot run it."""
    chosen = runnable(group, sizes, len(HELD), profile(device))
    if isinstance(chosen, str):
        return None
    spec, config = chosen
    made = build(spec, config, 0, torch.device("cpu"), (normal,))
    moved = {one.name: value.to(device) for one in fields(made) if isinstance(value := getattr(made, one.name), Tensor)}
    return replace(made, **moved, held=_held(spec.kv_len)), config


def _held(capacity: int) -> tuple[int, ...]:
    return tuple(capacity if length is None else length % capacity for length in HELD)


def run(group: Group, sizes: Sizes, device: torch.device) -> bool:
    """Whether there was something to run.

    Raises:
        RuntimeError: an output is not finite.
    """
    found = cases_of(group, sizes, device)
    if found is None:
        return False
    print(f"case: {group.name}", flush=True)
    cases, config = found
    spec, mask = cases.spec, cases.launched_mask
    whole = (spec.batch, spec.query_heads, spec.q_len, spec.kv_len)
    bounds = replace(cases, mask=cases.mask.cpu()).bounds
    lengths = None if spec.masked else torch.tensor(cases.held, dtype=torch.int32).to(device)
    bounds = None if bounds is None else bounds.to(device)
    # The merge asks for the partial results of all splits before it knows which of them were written, and drops the
    # others: written in advance, they are no finding, and NaN in an output where one is not dropped.
    with uninitialised_is_nan():
        out = launch_decode(
            cases.q, cases.stored_k, cases.stored_v, None if mask is None else mask.expand(whole), bounds,
            is_causal=spec.is_causal, scale=spec.scale, heads_first=True, config=config, k_scale=cases.k_scale,
            v_scale=cases.v_scale, lengths=lengths, table=cases.table, softcap=spec.softcap, sink=cases.sink,
            k_zero=cases.k_zero, v_zero=cases.v_zero, storage=cases.storage, rope=cases.rope,
        )  # fmt: skip
    # Copied first: its isfinite() on the GPU would be another kernel.
    if not out.cpu().isfinite().all():
        raise RuntimeError(f"{group.name}: an output is not finite")
    return True


def main(only: str = "", share: str = "0", shares: str = "1") -> None:
    sizes = INTERPRETER_SIZES if interpreting() else SIZES
    wanted = [group for group in GROUPS if only in group.name][int(share) :: int(shares)]
    with torch.no_grad():
        ran = sum(run(group, sizes, current_device()) for group in wanted)
    print(f"done: {ran}", flush=True)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(SILENT_S, repeat=True)
    main(*sys.argv[1:])
