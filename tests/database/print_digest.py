"""Prints this process's selection digest. Arguments: the databases to name in the option."""

import sys

import prefetch_compiler

print(prefetch_compiler.selection_digest({"kvprefetch.tuning_db": sys.argv[1:], "max_autotune": True}))
