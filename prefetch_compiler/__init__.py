"""kvprefetch: a torch.compile backend that lowers decode attention to kernels reading only the valid KV cache."""

from .aot import aot_compile_and_package
from .backend import kvprefetch
from .dense_attention import decode_attention
from .explainer import explain
from .options import DecodeOptions
from .paged_attention import paged_decode_attention
from .quantisation import quantise, quantise_affine
from .quantised_attention import quantised_decode_attention
from .recognize.bounds import mask_bounds
from .report import Report, SiteReport, Verdict
from .select.digest import selection_digest

__version__ = "0.1.0"

__all__ = [
    "DecodeOptions",
    "Report",
    "SiteReport",
    "Verdict",
    "aot_compile_and_package",
    "decode_attention",
    "explain",
    "kvprefetch",
    "mask_bounds",
    "paged_decode_attention",
    "quantise",
    "quantise_affine",
    "quantised_decode_attention",
    "selection_digest",
]
