"""The part of the page that shows a storage of studies: what its template needs, ready to be printed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .embedded import Figures
from .records_section import MAX_TABLE_ROWS
from .source import StudiesSource
from .study_facts import StudyFacts, facts_of
from .study_figures import depth_curves, views
from .theme import Tile, times

# Studies that are drawn one by one; a study takes some 100 kB.
MAX_STUDIES_IN_DETAIL = 40


def studies_section(source: StudiesSource, figures: Figures, only: str) -> dict[str, Any] | None:
    found = [facts_of(study) for study in source.studies if only in study.study_name]
    found = [facts for facts in found if facts.trials]
    if not found:
        return None
    detailed = found[:MAX_STUDIES_IN_DETAIL]
    devices = dict.fromkeys(value for facts in found for name, value in facts.facts if name == "device")
    return {
        "source": source.name,
        "devices": list(devices),
        "tiles": _tiles(found),
        "depths": figures.add(depth_curves(found)),
        "table": [_study_row(facts) for facts in found[:MAX_TABLE_ROWS]],
        "details": [_detail(facts, figures) for facts in detailed],
        "left_out": len(found) - len(detailed),
    }


def _tiles(found: Sequence[StudyFacts]) -> list[Tile]:
    paid = sum(facts.counted for facts in found)
    tiles = [Tile(f"{len(found):,}", "study" if len(found) == 1 else "studies", f"{paid:,} trials paid for")]
    gains = [facts.gain for facts in found if facts.gain is not None]
    bare = [facts.depth0_gain for facts in found if facts.depth0_gain is not None]
    mean = "geometric mean" if len(found) > 1 else "by the search's own measurement"
    if gains:
        tiles.append(Tile(times(statistics.geometric_mean(gains)), "the speed of the heuristic", mean))
    if bare:
        tiles.append(Tile(times(statistics.geometric_mean(bare)), "the speed of the best without prefetch", mean))
    best = [facts.best for facts in found if facts.best is not None]
    if best and len(found) > 1:
        prefetching = sum(trial.config.prefetches for trial in best)
        of = f"{prefetching} of {len(best)} studies"
        tiles.append(Tile(f"{prefetching / len(best):.0%}", "of the best prefetch", of))
    failed: Counter[str] = sum((facts.failures for facts in found), Counter())
    if failed:
        kinds = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in failed.most_common(3))
        tiles.append(Tile(f"{sum(failed.values()):,}", "trials without a time", kinds))
    return tiles


def _study_row(facts: StudyFacts) -> dict[str, Any]:
    best = facts.best
    return {
        "facts": facts,
        "best_us": None if best is None else best.objective_us,
        "depth": None if best is None else best.config.prefetch_depth,
        "config": "" if best is None else best.config.encode(),
        "failed": sum(facts.failures.values()),
        "published": facts.published or "",
    }


def _detail(facts: StudyFacts, figures: Figures) -> dict[str, Any]:
    return {
        "facts": facts,
        "views": [(view, [figures.add(figure) for figure in view.figures]) for view in views(facts)],
        "best": [(trial, _tried_from(trial.source)) for trial in facts.measured[:10]],
        "failures": facts.failures.most_common(),
    }


def _tried_from(source: str) -> str:
    return source if len(source) <= 80 else f"{source[:80]}…"
