"""The command `kvprefetch db`: look at, compare, combine and verify tuning databases."""
