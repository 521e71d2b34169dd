"""Decode steps of many architectures at their true dimensions, beside Inductor's."""
