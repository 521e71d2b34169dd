"""Peers on the CPU: every adapter gives what the oracle gives, refuses with a reason, or says why it is not there."""

from __future__ import annotations

import sys

import pytest
import torch

from prefetch_compiler.bench.kernel.cases import CacheLayout, Case, Fill
from prefetch_compiler.bench.kernel.operands import Operands, create_operands
from prefetch_compiler.bench.kernel.oracle import OUR_LIMIT, PEER_LIMIT, Oracle
from prefetch_compiler.bench.kernel.ours import OurChoice, attend_with, standing_choices
from prefetch_compiler.bench.kernel.peers.flashinfer_decode import page_lists, page_size_of, paged_view
from prefetch_compiler.bench.kernel.peers.peer import UnsupportedCaseError, first_line, why_not_loaded
from prefetch_compiler.bench.kernel.peers.registry import all_peers
from prefetch_compiler.bench.kernel.peers.sdpa import Sdpa
from prefetch_compiler.device import INTERPRETER, interpreting

from .fake_libraries import all_modules

CPU = torch.device("cpu")
PEERS = {peer.name: peer for peer in all_peers()}
# What runs on a CPU: SDPA's portable backend, and libraries that have stand-ins.
PORTABLE = [
    name for name, peer in PEERS.items() if name.startswith("sdpa math") or peer.family not in ("SDPA", "FlexAttention")
]
CASES = [
    Case(8, 2, 64, 3, 128, fill, layout, "float16")
    for fill in Fill
    for layout in CacheLayout
] + [Case(4, 4, 64, 2, 96, Fill.RAGGED), Case(6, 1, 80, 2, 64, Fill.HALF, CacheLayout.BSHD)]  # fmt: skip


def operands_of(case: Case, caches: int = 2) -> Operands:
    return create_operands(case, 1, caches, CPU)


@pytest.fixture
def _libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in all_modules().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("_libraries")
@pytest.mark.parametrize("name", PORTABLE)
def test_an_adapter_is_right_or_says_why_not(name: str) -> None:
    peer, taken = PEERS[name], 0
    assert peer.unavailable() is None
    for case in CASES:
        if peer.unsupported(case) is not None:
            continue
        operands = operands_of(case)
        try:
            attend = peer.prepare(operands)
        except UnsupportedCaseError as error:
            assert "page size" in str(error), case
            continue
        output = attend(operands.q, *operands.caches[-1])
        assert output.shape == (case.batch, case.query_heads, case.head_dim)
        found = Oracle(operands).judge(output, PEER_LIMIT)
        assert found.right, (case.name, found)
        taken += 1
    assert taken >= 2


def test_every_case_of_the_grid_is_taken_or_refused_in_words() -> None:
    for peer in PEERS.values():
        for case in CASES:
            reason = peer.unsupported(case)
            assert reason is None or reason.strip(), (peer.name, case)


def test_names_are_unique_and_told_without_a_gpu() -> None:
    assert len({peer.name for peer in all_peers()}) == len(all_peers())
    assert {peer.family for peer in all_peers()} >= {"SDPA", "FlexAttention", "FlashInfer", "xformers"}


@pytest.mark.parametrize("name", ["flash-attention 2", "flash-attention 3", "flashinfer", "xformers split-k"])
def test_what_is_not_installed_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in all_modules():
        monkeypatch.setitem(sys.modules, module, None)
    assert "not installed" in str(PEERS[name].unavailable())


def test_a_library_that_breaks_when_imported_says_how() -> None:
    assert why_not_loaded("torch", "no_such_function") is not None
    assert "no_such_function" in str(why_not_loaded("torch", "no_such_function"))
    assert "no_such_module" in str(why_not_loaded("no_such_module"))


def test_an_error_is_told_in_a_line() -> None:
    assert first_line(ValueError("\n  what happened\nand more")) == "ValueError: what happened"
    assert first_line(KeyError()) == "KeyError: "
    assert len(first_line(ValueError("long " * 1000))) == 300


def test_a_backend_that_refuses_gives_its_own_reason() -> None:
    case = Case(8, 2, 64, 1, 64)
    with pytest.raises((UnsupportedCaseError, RuntimeError)):
        Sdpa("cudnn", masked=False, heads="gqa").prepare(operands_of(case))


def test_what_ignores_lengths_is_told_apart() -> None:
    """Reading all of a half-full cache, or missing the last key: nothing that rounding would explain."""
    for fill, held in ((Fill.HALF, 128), (Fill.DENSE, 127), (Fill.RAGGED, 128)):
        operands = operands_of(Case(8, 2, 64, 3, 128, fill))
        k, v = (tensor[:, :, :held] for tensor in operands.caches[-1])
        group = [tensor.repeat_interleave(4, dim=1) for tensor in (k, v)]
        output = torch.nn.functional.scaled_dot_product_attention(operands.q, *group)[:, :, 0]
        assert not Oracle(operands).judge(output, PEER_LIMIT).right, fill


def test_outputs_that_are_not_finite_are_wrong_and_stay_plain_data() -> None:
    operands = operands_of(CASES[0])
    found = Oracle(operands).judge(torch.full((3, 8, 64), torch.nan), PEER_LIMIT)
    assert (found.right, found.bound_share, found.relative_error) == (False, None, None)
    assert found.describe() == "outputs that are not finite"


def test_flex_is_right_when_compiled() -> None:
    case = Case(4, 2, 64, 2, 128, Fill.RAGGED, dtype="float16")
    operands = operands_of(case)
    attend = PEERS["flex"].prepare(operands)
    with torch.no_grad():
        output = attend(operands.q, *operands.caches[-1])
    assert Oracle(operands).judge(output, PEER_LIMIT).right


@pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("fill", [Fill.DENSE, Fill.RAGGED])
@pytest.mark.parametrize("layout", CacheLayout)
def test_ours_is_within_its_own_bound(fill: Fill, layout: CacheLayout) -> None:
    case = Case(8, 2, 64, 2, 100, fill, layout, "float16")
    spec, operands = case.spec(), operands_of(case)
    choices = standing_choices(spec, INTERPRETER)
    assert all(isinstance(choice, OurChoice) for choice in choices)
    for choice in choices:
        assert isinstance(choice, OurChoice)
        output = attend_with(operands, choice.config)(operands.q, *operands.caches[-1])
        assert Oracle(operands).judge(output, OUR_LIMIT).right


def test_pages_of_a_cache_in_one_piece_are_its_own_memory() -> None:
    for layout in (CacheLayout.BSHD, CacheLayout.BHSD):
        for capacity, size in ((128, 64), (48, 16), (70, 70)):
            operands = operands_of(Case(4, 2, 64, 3, capacity, layout=layout), caches=1)
            view, k = paged_view(operands), operands.caches[0][0]
            assert (view.page_size, page_size_of(operands.case)) == (size, size)
            pages = view.pages(k)
            assert pages.data_ptr() == k.data_ptr()
            lists = page_lists(view, operands.lengths)
            assert lists.indptr.tolist() == [0, capacity // size, 2 * capacity // size, 3 * capacity // size]
            assert int(lists.indices.max()) == len(pages) - 1
            last = pages[-1] if view.layout == "HND" else pages[-1].transpose(0, 1)
            assert torch.equal(last, k[-1, :, -size:])


def test_page_tables_are_scattered_and_complete() -> None:
    operands = operands_of(Case(4, 2, 64, 4, 256, layout=CacheLayout.PAGE16), caches=1)
    assert operands.table is not None
    pages = operands.table.flatten().tolist()
    assert sorted(pages) == list(range(64))
    assert pages != sorted(pages)


@pytest.mark.parametrize(
    ("name", "dim", "taken"),
    [
        ("flashinfer", 80, False),
        ("flashinfer", 128, True),
        ("flashinfer", 256, True),
        ("flashinfer cudnn", 80, True),
    ],
)
def test_flashinfer_is_asked_for_heads_that_it_has_kernels_for(name: str, dim: int, taken: bool) -> None:
    (peer,) = (one for one in all_peers() if one.name == name)
    reason = peer.unsupported(Case(32, 8, dim, 1, 1024))
    assert (reason is None) is taken
    assert taken or reason == "head_dim 80: takes 64, 128, 256, 512"
