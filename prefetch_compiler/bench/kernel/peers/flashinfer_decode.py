"""FlashInfer: the batch-decode wrapper with tensor cores, the same on cuDNN, and XQA.

FlashInfer knows paged caches only. One in one piece is shown to it as pages of 64 (or 16) of its own memory, in order:
its plans divide sequences by whole pages, so that one large page would leave it nothing to divide. Kernels that were
not built before are compiled by nvcc at first use, which may take minutes, or fails where there is no nvcc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cases import CacheLayout, Case
from ..operands import Operands
from .peer import Attend, load, why_not_loaded

FAMILY = "FlashInfer"
_WORKSPACE_BYTES = 256 << 20
_XQA_PAGES = (16, 32, 64, 128)
# Of the kernels that merge splits (DISPATCH_HEAD_DIM).
_HEAD_DIMS = (64, 128, 256, 512)


@dataclass(frozen=True)
class PagedView:
    """A cache as FlashInfer takes it.

    Attributes:
        cache: how the cache itself lies.
        page_size: positions of a page.
        table: int32 (batch, pages of a sequence) on the device.
    """

    cache: CacheLayout
    page_size: int
    table: Tensor

    @property
    def layout(self) -> str:
        """``NHD`` (pages, page_size, kv_heads, head_dim) or ``HND`` (pages, kv_heads, page_size, head_dim)."""
        return "HND" if self.cache is CacheLayout.BHSD else "NHD"

    def pages(self, x: Tensor) -> Tensor:
        """K or V of one launch as pages, without a copy."""
        if self.cache.page_size is not None:
            return x
        batch, heads, capacity, dim = x.shape
        if self.cache is CacheLayout.BSHD:
            return x.transpose(1, 2).view(batch * capacity // self.page_size, self.page_size, heads, dim)
        # Heads outermost, a sequence's pages follow one another in its first head, and every other head's part of a
        # page lies a whole capacity further on: a regular view, in which pages that no table names overlap.
        pages = ((batch - 1) * heads + 1) * capacity // self.page_size
        strides = (self.page_size * dim, capacity * dim, dim, 1)
        return x.as_strided((pages, heads, self.page_size, dim), strides)


def page_size_of(case: Case) -> int:
    """Positions in a page of :func:`paged_view`."""
    if case.layout.page_size is not None:
        return case.layout.page_size
    return next((size for size in (64, 16) if case.capacity % size == 0), case.capacity)


def paged_view(operands: Operands) -> PagedView:
    case = operands.case
    size = page_size_of(case)
    table = operands.table
    if table is None:
        each = case.capacity // size
        apart = each * (case.kv_heads if case.layout is CacheLayout.BHSD else 1)
        first = torch.arange(case.batch, dtype=torch.int32, device=operands.q.device) * apart
        table = first[:, None] + torch.arange(each, dtype=torch.int32, device=operands.q.device)
    return PagedView(case.layout, size, table)


@dataclass(frozen=True)
class PageLists:
    """Pages of every sequence in compressed rows, int32 on the host: what ``plan`` takes."""

    indptr: Tensor
    indices: Tensor
    last_page_len: Tensor


def page_lists(view: PagedView, lengths: tuple[int, ...]) -> PageLists:
    held = torch.tensor(lengths, dtype=torch.int32)
    counts = (held + view.page_size - 1) // view.page_size
    indptr = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    indptr[1:] = torch.cumsum(counts, 0)
    table = view.table.cpu()
    indices = torch.cat([table[row, : int(count)] for row, count in enumerate(counts)])
    return PageLists(indptr, indices, held - (counts - 1) * view.page_size)


@dataclass(frozen=True)
class BatchDecode:
    """``BatchDecodeWithPagedKVCacheWrapper``, planned for CUDA graphs."""

    name: str
    backend: str
    tensor_cores: bool
    needs: str | None = None
    family: str = FAMILY

    def unavailable(self) -> str | None:
        reason = why_not_loaded("flashinfer", "BatchDecodeWithPagedKVCacheWrapper")
        if reason is None and self.needs is not None:
            reason = why_not_loaded(self.needs)
        return reason

    def unsupported(self, case: Case) -> str | None:
        if self.backend == "cudnn" or case.head_dim in _HEAD_DIMS:
            return None
        # Others are planned and launched, and an exception comes from the middle of a launch.
        return f"head_dim {case.head_dim}: takes {', '.join(map(str, _HEAD_DIMS))}"

    def prepare(self, operands: Operands) -> Attend:
        wrapper_class = load("flashinfer").BatchDecodeWithPagedKVCacheWrapper
        case, view = operands.case, paged_view(operands)
        wrapper = self._planned(wrapper_class, operands, view)
        out = torch.empty(
            (case.batch, case.query_heads, case.head_dim), dtype=case.torch_dtype, device=operands.q.device
        )

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            result: Tensor = wrapper.run(q.view(out.shape), (view.pages(k), view.pages(v)), out=out)
            return result

        return attend

    def _planned(self, wrapper_class: Any, operands: Operands, view: PagedView) -> Any:
        case, device = operands.case, operands.q.device
        lists = page_lists(view, operands.lengths)
        wrapper = wrapper_class(
            torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device),
            view.layout,
            use_cuda_graph=True,
            use_tensor_cores=self.tensor_cores,
            paged_kv_indptr_buffer=lists.indptr.to(device),
            paged_kv_indices_buffer=lists.indices.to(device),
            paged_kv_last_page_len_buffer=lists.last_page_len.to(device),
            backend=self.backend,
        )
        options = {"block_tables": view.table} if self.backend == "cudnn" else {}
        wrapper.plan(
            lists.indptr,
            lists.indices.to(device),
            lists.last_page_len,
            case.query_heads,
            case.kv_heads,
            case.head_dim,
            view.page_size,
            q_data_type=case.torch_dtype,
            kv_data_type=case.torch_dtype,
            sm_scale=case.scale,
            **options,
        )
        return wrapper


@dataclass(frozen=True)
class Xqa:
    """``xqa_batch_decode_with_kv_cache``, TensorRT-LLM's kernel."""

    name: str = "flashinfer xqa"
    family: str = FAMILY

    def unavailable(self) -> str | None:
        return why_not_loaded("flashinfer.decode", "xqa_batch_decode_with_kv_cache")

    def unsupported(self, case: Case) -> str | None:
        size = page_size_of(case)
        return None if size in _XQA_PAGES else f"pages of {size}: takes {', '.join(map(str, _XQA_PAGES))}"

    def prepare(self, operands: Operands) -> Attend:
        function = load("flashinfer.decode").xqa_batch_decode_with_kv_cache
        case, view, longest = operands.case, paged_view(operands), operands.max_length
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=operands.q.device)
        out = torch.empty(
            (case.batch, case.query_heads, case.head_dim), dtype=case.torch_dtype, device=operands.q.device
        )

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            function(
                q.view(out.shape), (view.pages(k), view.pages(v)), workspace, view.table, operands.held, longest,
                bmm1_scale=case.scale, bmm2_scale=1.0, out=out, kv_layout=view.layout,
            )  # fmt: skip
            return out

        return attend


def flashinfer_peers() -> list[BatchDecode | Xqa]:
    return [
        BatchDecode("flashinfer", "auto", tensor_cores=True),
        BatchDecode("flashinfer cudnn", "cudnn", tensor_cores=False, needs="cudnn"),
        Xqa(),
    ]
