"""The command `kvprefetch explain`: what of a model's decode step would be lowered on a GPU, from its configuration.

``gpu`` says which GPU, ``explained`` traces and selects, ``required_verdicts`` is for scripts, ``cli`` shows it.
"""
