"""Spec + config → constexprs and grid; the operators that graphs call; graph surgery."""
