"""Kernel sources as a key's features specialise them: read, never imported, and reduced to one text.

``program`` is the way in. ``modules`` and ``references`` find what names mean; ``folding`` and ``functions`` take out
what an absent feature leaves dead, ``arguments`` and ``decorators`` its parameters; ``canonical`` writes down the rest.
"""
