"""The shipped tuning database: one JSON data file per GPU model lies beside this file, and its schema.

There is no record yet, so every configuration comes from the heuristic (verdict ``heuristic``).
"""
