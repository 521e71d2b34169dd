"""Triton kernels with constexpr switches. They know nothing of graphs, specs or databases.

Importing this package imports no Triton; a template's module is loaded when a site first needs it.
"""
