"""Graphs → sites: one file per family of forms."""
