"""``kvprefetch bench kernel``: decode attention kernels beside each other and beside the speed of reading.

``cases`` and ``grid`` say what is measured, ``peers`` and ``ours`` who, ``operands`` sets a case up, ``oracle`` judges
results, ``stopwatch`` measures, ``search`` looks around our own choices, ``run`` does it all, ``result`` holds it,
``table``, ``plots`` and ``cli`` show it.
"""
