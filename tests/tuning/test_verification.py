"""Verification accepts kernels that are right and rejects each that is not, whatever the inputs it draws."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefetch_compiler.config import KernelConfig, LoadPath
from prefetch_compiler.database.key import TuningKey
from prefetch_compiler.errors import InadmissibleConfigError
from prefetch_compiler.lower.launch import launch_kernels
from prefetch_compiler.lower.specialise import DecodeTensors
from prefetch_compiler.tuning.errors import WrongResultError
from prefetch_compiler.tuning.verification import verify

from .mutants import mutated_templates
from .seeded_bugs import ADDITIVE, BOOL, DEVICE, ONE_SPLIT, PLAIN, RIGHT, ROWS, SEEDED_BUGS, SPLIT

# In the interpreter a seed costs about a second; KVPREFETCH_TEST_SEEDS asks for more of them.
SEEDS = range(int(os.environ.get("KVPREFETCH_TEST_SEEDS", "2" if DEVICE.type == "cpu" else "5")))


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_accepted(name: str) -> None:
    key, config = RIGHT[name]
    assert all(0 < verify(key, config, seed, DEVICE) <= 1 for seed in SEEDS[1:])


def test_a_mere_copy_is_accepted(tmp_path: Path) -> None:
    with mutated_templates((), tmp_path) as launch:
        assert verify(BOOL, SPLIT, SEEDS[-1], DEVICE, launch) <= 1


def _rounded_where_a_kernel_must(
    tensors: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None, config: KernelConfig
) -> None:
    """PyTorch in float32, with probabilities and output in the inputs' dtype: no kernel can do better."""
    q, k, v, mask = tensors.q, tensors.k.nan_to_num(), tensors.v.nan_to_num(), tensors.mask
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = torch.matmul(q.float(), k.mT) * scale
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask.float()
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0))
    total = weights.sum(-1, keepdim=True)
    tensors.out.copy_(torch.matmul(weights.to(q.dtype).float(), v) / total.masked_fill(total == 0, 1.0))


@pytest.mark.parametrize(
    ("key", "dtype"), [(BOOL, "bfloat16"), (ROWS, "float16"), (ADDITIVE, "bfloat16"), (PLAIN, "float16")]
)
def test_no_seed_asks_for_more_than_a_kernel_can_do(key: TuningKey, dtype: str) -> None:
    """Inputs on which the bound were missed by bad luck would lose good configurations."""
    key = replace(key, dtype=dtype, kv_dtype=dtype, mask_dtype=dtype if key.mask_dtype else "", capacity_bucket=64)
    for seed in range(3 * len(SEEDS)):
        assert verify(key, ONE_SPLIT, seed, DEVICE, _rounded_where_a_kernel_must) <= 1


@pytest.mark.parametrize("name", SEEDED_BUGS)
def test_a_seeded_bug_is_rejected(name: str, tmp_path: Path) -> None:
    case = SEEDED_BUGS[name]
    with mutated_templates(case.bugs, tmp_path) as launch:
        for seed in SEEDS:
            with pytest.raises(WrongResultError):
                verify(case.key, case.config, seed, DEVICE, launch)


# Of a key with a mask: each is launched once before any is launched again.
PROBLEMS = 2


class _Meddling:
    """The right launch, and then ``change`` done to memory."""

    def __init__(self, change: str) -> None:
        self.change, self.launches = change, 0

    def __call__(
        self, tensors: DecodeTensors, *, is_causal: bool, scale: float, softcap: float | None, config: KernelConfig
    ) -> None:
        launch_kernels(tensors, is_causal=is_causal, scale=scale, softcap=softcap, config=config)
        self.launches += 1
        if self.change == "last bit" and self.launches > PROBLEMS:
            tensors.out.view(torch.int16)[0, 0, 0, 0] ^= 1
        elif self.change == "before the output":
            tensors.out.as_strided((1,), (1,), tensors.out.storage_offset() - 1).fill_(0)
        elif self.change == "after the statistics" and tensors.stats is not None:
            stats = tensors.stats
            stats.as_strided((1,), (1,), stats.storage_offset() + stats.numel()).fill_(0)


def test_bits_that_differ_between_launches_are_rejected() -> None:
    with pytest.raises(WrongResultError, match="other bits"):
        verify(BOOL, ONE_SPLIT, 0, DEVICE, _Meddling("last bit"))


@pytest.mark.parametrize("place", ["before the output", "after the statistics"])
def test_a_write_outside_is_rejected(place: str) -> None:
    with pytest.raises(WrongResultError, match="outside"):
        verify(BOOL, SPLIT, 0, DEVICE, _Meddling(place))


def test_an_output_that_nobody_wrote_is_rejected() -> None:
    with pytest.raises(WrongResultError, match="NaN"):
        verify(BOOL, ONE_SPLIT, 0, DEVICE, lambda tensors, **_: None)


def test_the_message_names_the_configuration_and_the_problem() -> None:
    with pytest.raises(WrongResultError, match=rf"{ONE_SPLIT.encode()} is wrong on lengths at edges"):
        verify(BOOL, ONE_SPLIT, 0, DEVICE, lambda tensors, **_: None)


def test_what_the_device_cannot_run_is_not_run() -> None:
    too_large = KernelConfig(block_kv=256, num_splits=1, num_warps=8, num_stages=8, load_path=LoadPath.TMA)
    key = replace(BOOL, dtype="float32", kv_dtype="float32", head_dim=256, value_dim=256)
    with pytest.raises(InadmissibleConfigError):
        verify(key, too_large, 0, DEVICE)
