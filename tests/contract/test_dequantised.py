"""Where K and V are not read as they are stored: the site is lowered all the same, over what the graph dequantises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prefetch_compiler.lower import ops
from prefetch_compiler.recognize.residual import LONGEST_RESIDUAL
from prefetch_compiler.spec import ScaleGranularity

from .golden.dequantised import E4M3, HEAD, Dequantised, in_float32, in_rows_of_tokens
from .golden.graph import DEVICE, Golden
from .golden.run import assert_follows_eager, run_compiled, run_eagerly
from .uncompiled import graphs_run_uncompiled

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def high_half_first(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat([numbers >> 4, numbers & 15], -1).float().mul(scale).to(dtype)


def halves_of_two_kinds(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat([numbers & 15, numbers.view(torch.int8) >> 4], -1).float().mul(scale).to(dtype)


def halves_of_two_caches(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.cat([numbers & 15, (numbers ^ 16) >> 4], -1).float().mul(scale).to(dtype)


def shifted_in_wide_integers(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    wide = numbers.to(torch.int32)
    return torch.cat([(wide << 4) >> 4, wide >> 4], -1).float().mul(scale).to(dtype)


_FOUR = torch.tensor([1.0, 2.0, 4.0, 1.0], device=DEVICE)


def with_half_a_sum(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (torch.sub(numbers.float(), 8, alpha=2) * scale).to(dtype)


def with_wrapping_zeros(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of 16-bit integers wrap around for zeros as large as they may be."""
    return ((numbers.to(torch.int16) + (scale * 0).to(torch.int16) + 32760).float() * scale).to(dtype)


def less_another_cache(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return ((numbers.float() - numbers.flip(-1).float()) * scale).to(dtype)


def within_groups(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Every second channel of a token shares a scale."""
    groups = numbers.float().unflatten(-1, (8, 2)) * torch.cat([scale, scale * 2], -1).unsqueeze(-2)
    return groups.flatten(-2).to(dtype)


def by_groups_of_two_sizes(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    wide = numbers.float().unflatten(-1, (2, 8)) * torch.stack([scale, scale * 2], -2)
    return (wide.flatten(-2).unflatten(-1, (1, 16)).unflatten(-1, (4, 4)) * _FOUR[..., None]).flatten(-3).to(dtype)


def by_small_groups(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    scales = torch.cat([scale, scale * 2, scale, scale * 4], -1).unsqueeze(-1)
    return (numbers.float().unflatten(-1, (4, 4)) * scales).flatten(-2).to(dtype)


def in_integers(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Products of 8-bit integers wrap around."""
    return (numbers * 3).to(dtype) * scale.to(dtype)


def truncated(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (numbers.float() * 0.3).to(torch.int32).to(dtype) * scale.to(dtype)


def with_a_square(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    wide = numbers.to(dtype) * scale.to(dtype)
    return wide * wide


def each_number_its_own(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (numbers.float() * (scale * torch.ones_like(numbers, dtype=torch.float32))).to(dtype)


def narrowed_to_bytes_again(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A conversion to a format that has fewer numbers."""
    return numbers.float().to(E4M3).float().to(dtype) * scale.to(dtype)


def with_two_exact_tokens(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Two writes may meet, and then only one counts."""
    wide = in_float32(numbers, scale, dtype)
    wide[:, :, torch.tensor([4, 4], device=wide.device)] = wide[:, :, :1].expand(-1, -1, 2, -1) * 2
    return wide


def with_exact_tokens_elsewhere(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """K and V each have one where their scales say."""
    wide = in_float32(numbers, scale, dtype)
    wide[:, :, (scale.flatten()[:1] * 2**8).long().clamp(max=8)] = wide[:, :, 1:2] * 2
    return wide


def with_an_exact_channel(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    wide = in_float32(numbers, scale, dtype)
    wide[..., torch.tensor([4], device=wide.device)] = wide[..., :1] * 2
    return wide


def with_a_token_added(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """To what is there, and not in its place."""
    wide, at = in_float32(numbers, scale, dtype), torch.tensor([4], device=scale.device)
    return torch.ops.aten.index_put(wide, [None, None, at], wide[:, :, :1], True)


_AS_DEQUANTISED = [
    with_half_a_sum, with_wrapping_zeros, less_another_cache, within_groups, by_groups_of_two_sizes,
    by_small_groups, truncated, with_a_square, each_number_its_own, with_two_exact_tokens, with_exact_tokens_elsewhere,
    with_an_exact_channel, with_a_token_added,
]  # fmt: skip


def _run(golden: Golden) -> object:
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    (site,) = report.lowered
    assert_follows_eager(compiled, eager, problems)
    assert site.spec is not None
    return site.spec.cache


@pytest.mark.parametrize("dequantise", _AS_DEQUANTISED, ids=lambda function: function.__name__)
def test_what_no_kernel_knows_is_dequantised_by_the_graph(dequantise: Callable[..., Tensor]) -> None:
    form = Dequantised("plain", dequantise=dequantise)
    if dequantise is with_a_square:
        form = replace(form, key_exponent=-8, value_exponent=-8)
    assert _run(form.golden) is None


@pytest.mark.parametrize(
    "dequantise",
    [high_half_first, halves_of_two_kinds, halves_of_two_caches, shifted_in_wide_integers],
    ids=lambda function: function.__name__,
)
def test_bytes_that_are_taken_apart_otherwise_are_not_read_as_four_bits(dequantise: Callable[..., Tensor]) -> None:
    form = Dequantised("apart", format=torch.uint8, dequantise=dequantise, packing="uint4_halves", key_exponent=-2)
    cache = _run(form.golden)
    assert cache is None or not cache.storage.packing  # type: ignore[attr-defined]


def test_formats_that_differ_are_dequantised_by_the_graph() -> None:
    golden = Dequantised("formats").golden

    def steps() -> list[dict[str, Tensor]]:
        (step,) = golden.steps()
        return [{**step, "values": step["values"].to(E4M3)}]

    assert _run(replace(golden, steps=steps)) is None


def test_float32_queries_keep_their_precision() -> None:
    assert _run(Dequantised("float32", dtype=torch.float32).golden) is None


@pytest.mark.parametrize(("dequantise", "format"), [(narrowed_to_bytes_again, E4M3), (in_integers, torch.int8)])
def test_what_was_computed_of_stored_numbers_is_read(dequantise: Callable[..., Tensor], format: torch.dtype) -> None:
    """Conversions to fewer numbers and products that wrap around are the graph's; what they make is dequantised."""
    cache = _run(Dequantised("computed", dequantise=dequantise).golden)
    assert cache is not None and cache.dtype is format  # type: ignore[attr-defined]


def test_a_scale_of_channels_may_be_used_before_and_after_a_sum() -> None:
    """Only the latter may be left to the query and the output."""

    def twice(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return (((numbers.float() * scale) * 64 + 8) * scale).to(dtype)

    cache = _run(Dequantised("twice", dequantise=twice, key_scale="1.H.1.D", value_scale="1.H.1.D").golden)
    assert cache is not None
    assert cache.key_group == (0, 1)  # type: ignore[attr-defined]


def test_a_scale_of_a_slice_is_that_of_its_tokens() -> None:
    """As much of a cache as is held, and of its scales."""

    def held(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return in_float32(numbers[:, :, 2:], scale[:, :, 2:], dtype)

    form = Dequantised("held", dequantise=held, mask=False)
    cache = _run(form.golden)
    assert cache is not None and cache.key_scales is ScaleGranularity.TOKEN  # type: ignore[attr-defined]


_BYTES = Dequantised("gathering", mask=False)
_ROWS = Dequantised(
    "gathering_rows", mask=False, format=torch.uint8, dequantise=in_rows_of_tokens, scale_dtype=torch.float16
)


def _gathering(lengths: list[int], masked: bool, form: Dequantised = _BYTES) -> Golden:
    """Steps of a cache that gathers tokens before it quantises them: ``lengths`` of them after twenty numbers each."""
    golden = form.golden

    def attend(
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        key_scale: Tensor,
        value_scale: Tensor,
        few: Tensor,
        mask: Tensor,
        **_: object,
    ) -> Tensor:
        k, v = form.dequantise(keys, key_scale, q.dtype), form.dequantise(values, value_scale, q.dtype)
        k, v = torch.cat([k, few, q[:, :2]], 2), torch.cat([v, few.flip(-1), q[:, 2:]], 2)
        attn_mask = mask if masked else None
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, enable_gqa=True)

    def steps() -> list[dict[str, Tensor]]:
        (step,) = golden.steps()
        few = step["q"][:, 1:3].expand(-1, -1, max(lengths), -1).cumsum(2) / 4
        seen = (torch.arange(21 + max(lengths), device=DEVICE) % 5 > 0)[None, None, None]
        del step["mask"], step["new"]
        return [{**step, "few": few[:, :, :n].clone(), "mask": seen[..., : 21 + n].clone()} for n in lengths]

    return replace(golden, program=attend, steps=steps)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_tokens_that_gather_before_they_are_quantised(masked: bool) -> None:
    """Their number is symbolic from the second step on; that of the numbers is not."""
    golden = _gathering([2, 3, 4, 9], masked)
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    assert_follows_eager(compiled, eager, problems)
    assert [site.spec.cache.dtype for site in report.lowered if site.spec and site.spec.cache] == [torch.int8] * 2


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_numbers_whose_length_grows_are_read_as_they_are_stored(masked: bool) -> None:
    """In rows, as HQQ has them, and before tokens that are not quantised: both lengths are symbolic from the second
    step on, and the third has no graph of its own."""
    gathering = _gathering([2, 3, 4], masked, _ROWS)

    def steps() -> list[dict[str, Tensor]]:
        found = []
        for step, length in zip(gathering.steps(), (12, 16, 20), strict=True):
            cache = {name: step[name][:, :, :length].clone() for name in ("keys", "values", "key_scale", "value_scale")}
            found.append({**step, **cache, "mask": step["mask"][..., 20 - length :].clone()})
        return found

    golden = replace(gathering, steps=steps)
    eager, problems = run_eagerly(golden)
    with graphs_run_uncompiled():
        compiled, report = run_compiled(golden)
    assert_follows_eager(compiled, eager, problems)
    assert [site.spec.cache.dtype for site in report.lowered if site.spec and site.spec.cache] == [torch.uint8] * 2


def test_many_tokens_that_are_not_quantised_are_a_kernels() -> None:
    golden = _gathering([LONGEST_RESIDUAL], True)
    assert _run(golden) is None


def test_numbers_at_an_odd_address_are_dequantised_for_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read in pairs; where they lie is known when they are there."""
    launched: list[object] = []
    monkeypatch.setattr(ops, "launch_decode", lambda *operands, **_: launched.append(operands))
    golden = Dequantised("odd").golden

    def steps() -> list[dict[str, Tensor]]:
        (step,) = golden.steps()
        keys = step["keys"]
        odd = torch.empty(keys.numel() + 1, dtype=keys.dtype, device=keys.device)[1:].view(keys.shape)
        assert odd.copy_(keys).data_ptr() % 2 == 1
        return [{**step, "keys": odd}]

    assert _run(replace(golden, steps=steps)) is not None
    assert not launched


def test_what_fails_to_launch_is_dequantised_for_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> Tensor:
        raise RuntimeError("no such device")

    monkeypatch.setattr(ops, "launch_decode", fails)
    monkeypatch.setattr(ops, "_failed_configs", {})
    form = Dequantised("failing", format=E4M3, key_scale="1.H.1.1", keys=HEAD)
    assert _run(form.golden) is not None
