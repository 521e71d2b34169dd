"""What torch.export captures is marked as what Dynamo captures, and nothing is marked that would need a guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.attention.flex_attention import flex_attention

from prefetch_compiler.lower.mark import Marks, mark
from prefetch_compiler.recognize.sizes import no_guards

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Attention(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.multi_head = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(self, q, k, v)


def without_gradients(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        return F.scaled_dot_product_attention(q, k, v)


def folded(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (tensor.flatten(0, 1) for tensor in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)


def einsums(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k), -1), v)


def added(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.baddbmm(q.new_zeros(1), q.flatten(0, 1), k.flatten(0, 1).mT)
    return torch.special.softmax(scores, -1) @ v.flatten(0, 1)


def multi_head(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (tensor.transpose(1, 2).flatten(2) for tensor in (q, k, v))
    return module.multi_head(q, k, v, need_weights=False)[0]


FORMS = {
    "sdpa": lambda module, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3, is_causal=True),
    "no_grad": without_gradients,
    "matmul": lambda module, q, k, v: F.softmax(q @ k.mT, -1, dtype=torch.float32) @ v,
    "bmm": folded,
    "baddbmm": added,
    "einsum": einsums,
    "multi_head": multi_head,
    "flex": lambda module, q, k, v: flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score * 2),
}


def operands(q_len: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, 4, n, 16, generator=generator).to(DEVICE) for n in (q_len, 32, 32))


def marked(attend: Callable[..., Tensor], strict: bool, q_len: int = 1, **dynamic: Any) -> Marks:
    module = Attention(attend).eval().requires_grad_(False).to(DEVICE)
    program = torch.export.export(module, operands(q_len), strict=strict, **dynamic)
    with no_guards():
        return mark(program.module(check_guards=False))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_an_exported_form_is_marked(form: str, strict: bool) -> None:
    marks = marked(FORMS[form], strict)
    assert not marks.failures
    assert len(marks.marked) == len(marks.reports) == 1


def dynamic_shapes(dim: int, name: Dim, of_query_alone: bool = False) -> dict[str, Any]:
    others = {} if of_query_alone else {dim: name}
    return {"dynamic_shapes": ({dim: name}, others, others)}


@pytest.mark.parametrize(
    ("dim", "bounds", "q_len", "reason"),
    [
        (0, {"min": 1, "max": 64}, 1, None),
        (2, {"min": 1, "max": 16}, 3, None),
        (2, {"min": 1, "max": 17}, 3, "at most 16 queries depends on dynamic dimensions"),
        (2, {"min": 17, "max": 64}, 20, "prefill"),
        (1, {"min": 1, "max": 64}, 1, "the number of heads or head_dim of query is a dynamic dimension"),
        (3, {"min": 1, "max": 8}, 1, "the number of heads or head_dim of query is a dynamic dimension"),
    ],
)
def test_what_holds_for_some_sizes_only_is_refused(
    dim: int, bounds: dict[str, int], q_len: int, reason: str | None
) -> None:
    """Nothing checks a guard in a package."""
    size = Dim("size", **bounds)
    if dim == 3:
        size = 8 * size  # A GPU's kernels of PyTorch ask for columns of 16 bytes.
    attend = FORMS["no_grad"]
    (report,) = marked(attend, False, q_len, **dynamic_shapes(dim, size, of_query_alone=dim == 2)).reports.values()
    if reason is None:
        assert "did not meet" in report.reason
    else:
        assert reason in report.reason


def test_softmax_over_a_dynamic_number_of_heads_is_refused() -> None:
    shapes = dynamic_shapes(1, Dim("heads", min=1, max=64))
    (report,) = marked(FORMS["matmul"], False, **shapes).reports.values()
    assert "the number of heads is a dynamic dimension" in report.reason
