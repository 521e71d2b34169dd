"""``kvprefetch capture``: which model, which sizes, and where the sites go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..demo.cache_kind import CacheKind

if TYPE_CHECKING:
    from rich.table import Table

    from .capture import Capture

_MODEL_HELP = "A preset such as llama-3-8b, 'smollm2', a local folder, a .gguf file, or a hub id."


def capture(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)],
    batch: Annotated[str, typer.Option(help="Sequences, comma-separated.")] = "1,16,64",
    capacity: Annotated[
        str, typer.Option(help="Keys that a static cache has room for, or that a dynamic one holds; comma-separated.")
    ] = "4096,32768",
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16; comma-separated.")] = "bfloat16",
    cache: Annotated[CacheKind, typer.Option(help="Preallocated, or growing with every token.")] = CacheKind.STATIC,
    attn: Annotated[
        str, typer.Option("--attn-implementation", "--attn", help="transformers' attention implementation.")
    ] = "sdpa",
    all_layers: Annotated[
        bool, typer.Option("--all-layers", help="Trace every layer, not one of each kind: slow, and the same keys.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model's repository brings along.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="File of sites to write, for `kvprefetch tune`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the attention sites of a model's decode step as tuning keys: from its configuration, with no GPU.

    Only the configuration is read. The decode step is traced as torch.compile would trace it, and nothing is compiled.
    Exits with 2 if no site would be lowered.
    """
    from rich.console import Console

    from ..demo.progress import stage_progress
    from .capture import capture as trace
    from .capture_errors import NothingCapturedError
    from .keys_wanted import sizes_of
    from .sites import write_sites

    batches, capacities = sizes_of("--batch", batch), sizes_of("--capacity", capacity)
    dtypes = [name.strip() for name in dtype.split(",")]
    points = len(batches) * len(capacities) * len(dtypes)
    with (
        stage_progress(Console(stderr=True)) as progress,
        progress.stage(f"trace decode steps of {model}", points) as done,
    ):
        found = trace(
            model, batches, capacities, dtypes, cache=cache, attention=attn, all_layers=all_layers,
            trust_remote_code=trust_remote_code, done=done,
        )  # fmt: skip
    if not found.sites:
        raise NothingCapturedError(found.model, (site.reason for site in found.left))
    if out is not None:
        write_sites(out, found.sites)
    _show(found, out, as_json)


def _show(found: Capture, out: Path | None, as_json: bool) -> None:
    import json

    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(_plain(found), indent=2))
        return
    console = Console()
    console.print(_table(found))
    if out is not None:
        console.print(f"written to {out}; next: kvprefetch tune {out}", soft_wrap=True, highlight=False, markup=False)


def _plain(found: Capture) -> dict[str, Any]:
    return {
        "model": found.model,
        "sites": [{"key": site.key.name, "layers": site.layers, "layer": site.layer} for site in found.sites],
        "left": [{"reason": site.reason, "layers": site.layers, "layer": site.layer} for site in found.left],
    }


def _table(found: Capture) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{len(found.sites)} keys of {escape(found.model)}", title_justify="left")
    table.add_column("key", overflow="fold")
    table.add_column("layers", justify="right", no_wrap=True)
    table.add_column("such as", overflow="fold")
    for site in found.sites:
        table.add_row(escape(site.key.name), str(site.layers), escape(site.layer))
    for left in found.left:
        table.add_row(f"[yellow]left to Inductor:[/] {escape(left.reason)}", str(left.layers), escape(left.layer))
    return table
