"""How near each case comes to the read ceiling, by the bytes that it must read."""

from __future__ import annotations

from typing import Any

from .plot_style import CEILING_COLOUR, byte_ticks, colour_of, new_figure, subtitle, tidy
from .result import OUR_FAMILY, SHIPPED, CaseResult, KernelRun

# Powers of two by which neighbouring families stand apart, so that points of equal bytes do not hide one another.
_APART = 0.06


def ceiling_share_figure(run: KernelRun) -> Any:
    """A point for each case and family of peers (the fastest of the family), and for ours as shipped."""
    figure, axes = new_figure(10.5, 5.6)
    families = run.families
    shares = [_draw_family(axes, run, family, place - len(families) / 2) for place, family in enumerate(families)]
    shares.append(_draw_ours(axes, run, len(families) / 2))
    axes.axhline(1.0, color=CEILING_COLOUR, linewidth=1.2, linestyle="--")
    axes.annotate("read ceiling", (0.005, 1.0), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=9)
    byte_ticks(axes)
    axes.set_ylim(0, max(1.08, *(share + 0.04 for group in shares for share in group)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("bytes of K and V that must be read (families stand side by side)")
    axes.set_ylabel("share of the read ceiling")
    axes.set_title(f"How near decode attention comes to reading\n{subtitle(run)}", loc="left", fontsize=11)
    tidy(axes)
    axes.legend(loc="lower right", frameon=True, fontsize=9, title="fastest of each family")
    return figure


def _draw_family(axes: Any, run: KernelRun, family: str, place: float) -> list[float]:
    """Returns the shares that were drawn."""
    points = [(case, share) for case in run.cases if (share := best_share(case, family)) is not None]
    sizes = [_beside(case, place) for case, _ in points]
    shares = [share for _, share in points]
    axes.scatter(sizes, shares, s=20, color=colour_of(family), alpha=0.75, linewidths=0, label=family)
    return shares


def _draw_ours(axes: Any, run: KernelRun, place: float) -> list[float]:
    points = [(case, share) for case in run.cases if (share := case.ceiling_share(SHIPPED)) is not None]
    shares = [share for _, share in points]
    axes.scatter(
        [_beside(case, place) for case, _ in points], shares, s=34, marker="D", color=colour_of(OUR_FAMILY),
        edgecolors="white", linewidths=0.6, label="kvprefetch, as shipped", zorder=3,
    )  # fmt: skip
    return shares


def _beside(case: CaseResult, place: float) -> float:
    """Bytes, moved a little to the side."""
    return float(case.valid_bytes * 2 ** (_APART * place))


def best_share(case: CaseResult, family: str) -> float | None:
    """The largest share of the ceiling that a member of ``family`` reaches."""
    shares = [case.ceiling_share(peer.name) for peer in case.peers if peer.family == family]
    return max((share for share in shares if share is not None), default=None)
