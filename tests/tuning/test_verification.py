"""Verification accepts kernels that are right and rejects each that is not, whatever the inputs it draws."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefetch_compiler.config import KernelConfig, LoadPath
from prefetch_compiler.errors import InadmissibleConfigError
from prefetch_compiler.lower.launch import launch_kernels
from prefetch_compiler.lower.specialise import DecodeTensors
from prefetch_compiler.tuning.errors import WrongResultError
from prefetch_compiler.tuning.verification import verify

from .mutants import mutated_templates
from .seeded_bugs import BOOL, DEVICE, ONE_SPLIT, RIGHT, SEEDED_BUGS, SPLIT

# In the interpreter a seed costs about a second; KVPREFETCH_TEST_SEEDS asks for more of them.
SEEDS = range(int(os.environ.get("KVPREFETCH_TEST_SEEDS", "2" if DEVICE.type == "cpu" else "5")))


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_accepted(name: str) -> None:
    key, config = RIGHT[name]
    assert all(0 < verify(key, config, seed, DEVICE) <= 1 for seed in SEEDS[1:])


def test_a_mere_copy_is_accepted(tmp_path: Path) -> None:
    with mutated_templates((), tmp_path) as launch:
        assert verify(BOOL, SPLIT, SEEDS[-1], DEVICE, launch) <= 1


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

    def __call__(self, tensors: DecodeTensors, *, is_causal: bool, scale: float, config: KernelConfig) -> None:
        launch_kernels(tensors, is_causal=is_causal, scale=scale, config=config)
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
