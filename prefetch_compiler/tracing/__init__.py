"""Decode steps of models without weights: which attention sites serving would lower. Nothing is compiled or run.

``decoders`` builds a model from its configuration and says how it decodes, ``layer_cut`` keeps one layer of each kind,
``fake_decode`` traces a step, ``traced_sites`` is the torch.compile backend that looks at its graphs.
"""
