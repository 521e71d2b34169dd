"""``kvprefetch bench kernel``: its options, and what it prints."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from ...errors import InvalidOptionError, KVPrefetchError
from ...part import parse_part
from ..errors import NoGpuError
from .grid import Sweep, chosen

if TYPE_CHECKING:
    from .cases import Case
    from .peers.peer import Peer
    from .result import KernelRun
    from .run import KernelSettings

COMMAND = "bench kernel"
ROUNDS, SEARCH = 21, 24
QUICK_ROUNDS, QUICK_SEARCH = 11, 16
OURS_WORD = "kvprefetch"


@dataclass(frozen=True)
class _Shown:
    """How a run is shown; ``plots`` is the folder to draw into."""

    everyone: bool
    as_json: bool
    plots: Path | None


def kernel(
    cases: Annotated[
        str,
        typer.Option(help="Comma-separated: '32q/8kv d128 b16 s4096 half bhsd' declares one, 'gqa4 ragged' selects."),
    ] = "",
    peers: Annotated[
        str, typer.Option(help="Comma-separated beginnings of names, as in sdpa,flex,kvprefetch; empty: everyone.")
    ] = "",
    quick: Annotated[bool, typer.Option(help="A few representative cases, fewer rounds, a smaller search.")] = False,
    sweep: Annotated[Sweep | None, typer.Option(help="Instead of the grid: one size in small steps.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Samples of each.", show_default=f"{ROUNDS}, quick {QUICK_ROUNDS}")
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Configurations measured in search of our best, without prefetch and with it each; 0: none.",
            show_default=f"{SEARCH}, quick {QUICK_SEARCH}",
        ),
    ] = None,
    part: Annotated[
        str, typer.Option(help="K/N: every N-th case from the K-th on, as for one of N GPUs.", show_default="all")
    ] = "",
    budget: Annotated[float | None, typer.Option(min=0, help="Seconds after which no case is started.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs, ragged lengths and page tables.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="List cases, bytes and peers; needs no GPU.")] = False,
    everyone: Annotated[
        bool, typer.Option("--all", help="Show every peer and every reason, not the fastest few of each case.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON, raw samples included, case by case.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Draw plots into this folder; needs matplotlib.")] = None,
    from_files: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Show and draw what --out wrote, and measure nothing. May be repeated: parts."),
    ] = None,
) -> None:
    """Decode attention kernels: ours, every peer that is installed, and the read ceiling, in one run."""
    try:
        if plots is not None:
            require_matplotlib()
        if from_files:
            _show(_read(from_files), _Shown(everyone, as_json, plots))
            return
        taken = parse_part(part)
        wanted = taken.of(chosen(cases, quick, sweep))
        selected, ours = _selected_peers(peers)
        if dry_run:
            _dry_run(wanted, selected, seed, as_json)
            return
        if not torch.cuda.is_available():
            raise NoGpuError(COMMAND, "--dry-run lists cases and peers, --from FILE shows results")
        from .run import KernelSettings

        settings = KernelSettings(
            cases=wanted,
            peers=selected,
            rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS),
            search=search if search is not None else (QUICK_SEARCH if quick else SEARCH),
            seed=seed,
            budget_s=budget,
            sweep=None if sweep is None else sweep.value,
            ours=ours,
            part=str(taken),
        )
        _measure(settings, _Shown(everyone, as_json, plots), out)
    except KVPrefetchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _measure(settings: KernelSettings, shown: _Shown, out: Path | None) -> None:
    from .guard import problems
    from .leave import leave_quietly
    from .run import KernelBench

    def keep(run: KernelRun) -> None:
        if out is not None:
            run.write(out)

    run = KernelBench(settings, torch.device("cuda", torch.cuda.current_device()), _progress, keep).run()
    _show(run, shown)
    found = problems(run)
    for line in found:
        typer.echo(f"wrong: {line}", err=True)
    leave_quietly()
    raise typer.Exit(1 if found else 0)


def _read(paths: list[Path]) -> KernelRun:
    """Raises: InvalidResultError."""
    from .parts import read_parts

    return read_parts(paths)


def _show(run: KernelRun, shown: _Shown) -> None:
    from ..table import show
    from .table import run_tables

    if shown.as_json:
        print(json.dumps(run.to_dict(), indent=1))
    else:
        for table in run_tables(run, shown.everyone):
            show(table)
    if shown.plots is not None:
        from .plots import draw

        for path in draw(run, shown.plots):
            _progress(f"drawn: {path}")


def _dry_run(cases: tuple[Case, ...], peers: tuple[Peer, ...], seed: int, as_json: bool) -> None:
    from ..table import show
    from .table import cases_table, peers_table

    reasons = [(peer, peer.unavailable()) for peer in peers]
    if as_json:
        plain = {
            "cases": [
                {"case": case.name, "valid_bytes": case.valid_bytes(seed), "capacity_bytes": case.capacity_bytes}
                for case in cases
            ],
            "peers": [{"name": peer.name, "family": peer.family, "reason": reason} for peer, reason in reasons],
        }
        print(json.dumps(plain, indent=1))
        return
    show(cases_table(cases, seed))
    show(peers_table(reasons))


def _selected_peers(text: str) -> tuple[tuple[Peer, ...], bool]:
    """The peers whose names begin with one of the given words, and whether ours take part.

    Raises:
        InvalidOptionError: a word is the beginning of no name.
    """
    from .peers.registry import all_peers

    known = all_peers()
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        return known, True
    for word in words:
        if word != OURS_WORD and not any(peer.name.startswith(word) for peer in known):
            names = ", ".join([OURS_WORD, *(peer.name for peer in known)])
            raise InvalidOptionError("peers", word, f"the beginning of one of {names}")
    return tuple(peer for peer in known if peer.name.startswith(tuple(words))), OURS_WORD in words


def require_matplotlib() -> None:
    """Raises: MissingExtraError."""
    from importlib.util import find_spec

    from ...demo.errors import MissingExtraError

    if find_spec("matplotlib") is None:
        raise MissingExtraError("plot", ["matplotlib"])


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
