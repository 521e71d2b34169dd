"""Choosing a KernelConfig: what is admissible, and what the heuristic says."""
