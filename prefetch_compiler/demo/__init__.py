"""A real model, decoded through our kernels: what ``kvprefetch demo`` does."""
