"""Pairwise covering designs: few cases in which every pair of values of any two factors still meets.

Most faults of a kernel with many switches need one or two of them in a certain position (Kuhn, Wallace and Gallo,
"Software fault interactions and implications for software testing", IEEE TSE 30(6), 2004), so a design that meets
every pair finds them at a fraction of the product's cost.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

Pair = tuple[int, int, int, int]  # factor, its value, a later factor, its value; all as positions


def covering_rows(factors: Mapping[str, Sequence[Any]], *, seed: int, tries: int = 5) -> list[dict[str, Any]]:
    """Rows in which every pair of values of every two factors occurs at least once.

    Greedy (AETG): each row starts from a pair not yet met, sets the other factors in random order to the value that
    meets most pairs not yet met, and is the best of ``tries``. The same arguments give the same rows.
    """
    names, levels = list(factors), [list(values) for values in factors.values()]
    missing = _all_pairs([len(level) for level in levels])
    chooser = random.Random(seed)
    rows: list[dict[str, Any]] = []
    while missing:
        candidates = [_grow_row(missing, levels, chooser) for _ in range(tries)]
        best = max(candidates, key=lambda row: len(_pairs_of(row) & missing))
        missing -= _pairs_of(best)
        rows.append({name: level[position] for name, level, position in zip(names, levels, best, strict=True)})
    return rows


def _all_pairs(sizes: Sequence[int]) -> set[Pair]:
    return {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(sizes)), 2)
        for i in range(sizes[a])
        for j in range(sizes[b])
    }


def _pairs_of(row: Sequence[int]) -> set[Pair]:
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(range(len(row)), 2)}


def _grow_row(missing: set[Pair], levels: Sequence[Sequence[Any]], chooser: random.Random) -> list[int]:
    start = chooser.choice(sorted(missing))
    row = {start[0]: start[1], start[2]: start[3]}
    others = [factor for factor in range(len(levels)) if factor not in row]
    chooser.shuffle(others)
    for factor in others:
        positions = list(range(len(levels[factor])))
        chooser.shuffle(positions)
        row[factor] = max(positions, key=lambda position: _gain(factor, position, row, missing))
    return [row[factor] for factor in range(len(levels))]


def _gain(factor: int, position: int, row: Mapping[int, int], missing: set[Pair]) -> int:
    """Pairs not yet met that this value would meet beside the values already set."""
    ordered = (
        (factor, position, other, value) if factor < other else (other, value, factor, position)
        for other, value in row.items()
    )
    return sum(pair in missing for pair in ordered)
