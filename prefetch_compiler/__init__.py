"""kvprefetch: a torch.compile backend that lowers decode attention to kernels reading only the valid KV cache."""

from .backend import kvprefetch
from .explainer import explain
from .paged import paged_decode_attention
from .report import Report, SiteReport, Verdict
from .select.digest import selection_digest

__version__ = "0.1.0"

__all__ = ["Report", "SiteReport", "Verdict", "explain", "kvprefetch", "paged_decode_attention", "selection_digest"]
