"""Quantising and dequantising in plain PyTorch: what comes back is as near as the numbers allow."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from prefetch_compiler import quantise, quantise_affine
from prefetch_compiler.errors import InvalidAttentionInputError
from prefetch_compiler.quantisation import dequantise, packed, unpacked
from prefetch_compiler.spec import PACKED_FORMATS, Storage

GROUPS = {"tensor": None, "head": None, "token": None, "group": (3, 4)}
SHAPES = {"tensor": (), "head": (1, 2, 1), "token": (2, 2, 6), "group": (2, 2, 2, 2)}


def cache() -> Tensor:
    """Numbers far from 0 and of very different sizes, and a token whose numbers are all the same."""
    x = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(1)) + 3
    x = x * torch.logspace(-1, 1, 6)[:, None]
    x[1, 1, 2] = -7.0
    return x


@pytest.mark.parametrize("minima", [False, True])
@pytest.mark.parametrize("packing", ["", *PACKED_FORMATS])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
@pytest.mark.parametrize("granularity", SHAPES)
def test_affine_numbers_are_as_near_as_half_a_step(
    granularity: str, dtype: torch.dtype, packing: str, minima: bool
) -> None:
    x = cache()
    numbers, scale, zero = quantise_affine(
        x, dtype, granularity, minima=minima, group=GROUPS[granularity], packing=packing
    )
    assert numbers.dtype is dtype and numbers.shape[3] == (4 if packing else 8)
    assert scale.shape == zero.shape == SHAPES[granularity]
    assert minima or torch.equal(zero, zero.round())
    back = dequantise(numbers, scale, torch.float64, zero, minima=minima, packing=packing)
    steps = 255 if not packing and dtype is torch.uint8 else 254 if not packing else 15 if packing[0] == "u" else 14
    if granularity == "group":
        x, back = (one.unflatten(3, (2, 4)).unflatten(2, (2, 3)) for one in (x, back))
        shared: tuple[int, ...] = (3, 5)
    else:
        shared = {"tensor": (0, 1, 2, 3), "head": (0, 2, 3), "token": (3,)}[granularity]
    width = x.amax(shared, keepdim=True) - x.amin(shared, keepdim=True)
    # A zero that is whole moves all by half a step at most, and with it what lies at the ends.
    allowed = width / steps * (0.5 if minima else 1.0) + 1e-5 * x.abs()
    assert ((back - x).abs() <= allowed).all()


@pytest.mark.parametrize("packing", PACKED_FORMATS)
def test_every_pair_of_numbers_is_packed_and_comes_back(packing: str) -> None:
    least = -8 if packing.startswith("int4") else 0
    pairs = torch.tensor(list(itertools.product(range(least, least + 16), repeat=2)), dtype=torch.int8)
    row = pairs.flatten() if packing.endswith("interleaved") else pairs.T.flatten()
    bytes_ = packed(row, packing)
    assert torch.equal(bytes_, ((pairs[:, 0] & 15) | ((pairs[:, 1] & 15) << 4)).view(torch.uint8))
    for stored in (bytes_, bytes_.view(torch.int8)):
        assert torch.equal(unpacked(stored, packing), row)


@pytest.mark.parametrize("packing", ["int4_halves", "int4_interleaved"])
def test_symmetric_numbers_of_four_bits(packing: str) -> None:
    x = cache()
    numbers, scale = quantise(x, torch.uint8, "token", packing=packing)
    assert scale is not None
    back = dequantise(numbers, scale, torch.float32, packing=packing)
    assert ((back - x).abs() <= x.abs().amax(3, keepdim=True) / 7 * 0.501).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.float8_e4m3fn}, "dtype is torch.float8_e4m3fn; it must be torch.int8 or torch.uint8"),
        ({"granularity": "none"}, "granularity is none"),
        ({"granularity": "group"}, "group is None; it must be given with granularity group"),
        ({"group": (1, 4)}, r"group is \(1, 4\); it must be given with granularity group, and with no other"),
        ({"granularity": "group", "group": (4, 4)}, "columns that divide 6 and 8"),
        ({"packing": "int3"}, "packing is int3; it must be one of int4_halves"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"dtype": torch.uint8, "granularity": "token", **arguments}
    with pytest.raises(InvalidAttentionInputError, match=message):
        quantise_affine(cache(), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", [Storage(), Storage(True, False), Storage(False, True, "uint4_halves")])
def test_how_a_cache_is_stored_comes_back_from_text(storage: Storage) -> None:
    assert Storage.decode(storage.encode()) == storage


@pytest.mark.parametrize("text", ["int3_halves", "int4_halves uint4_halves"])
def test_text_that_says_nothing_of_a_cache_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="says of no quantised cache"):
        Storage.decode(text)
