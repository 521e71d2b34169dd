"""The shipped tuning database: one JSON data file per GPU model lies beside this file, and its schema.

Where no record fits, the configuration comes from the heuristic (verdict ``heuristic``).
"""
