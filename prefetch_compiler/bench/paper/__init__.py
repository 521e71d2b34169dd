"""``bench paper``: the setting of arXiv 2504.06319 rebuilt, to say what prefetching KV tiles into L2 is worth there.

``models`` and ``case`` say what is measured, ``variant`` which kernels take part, ``kernel`` and ``paging`` run the
rebuilt one, ``inputs`` and ``contestants`` set a case up, ``check`` holds every result against float64, ``ours``
chooses our configurations, ``clock`` measures, ``run`` does it all; ``result`` holds it, ``summary``, ``tables``,
``plots`` and ``cli`` show it. ``ncu`` and ``profiled`` read hardware counters.
"""
