"""``kvprefetch bench numerics``: errors of every kernel against float64, beside those of PyTorch in the same dtype."""
