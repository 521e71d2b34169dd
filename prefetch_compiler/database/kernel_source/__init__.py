"""Kernel sources as a key's features specialise them: read, never imported, and reduced to one text.

``program`` is the way in; ``modules`` finds what names mean, ``folding`` and ``functions`` take out what an absent
feature leaves dead, ``arguments`` takes its parameters from calls, ``canonical`` writes down what is left.
"""
