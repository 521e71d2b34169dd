"""The benchmarks users run on their own GPU: whole decode steps beside Inductor and beside the speed of memory.

``case`` and ``variant`` say what is measured, ``model`` and ``state`` set it up, ``check`` compares results, ``timing``
and ``kernels`` measure, ``ceiling`` and ``floor`` say how fast memory would allow, ``e2e`` runs it all, ``result``
holds it, ``table`` and ``cli`` show it. ``kernel`` measures attention by itself, beside other kernels.
"""
