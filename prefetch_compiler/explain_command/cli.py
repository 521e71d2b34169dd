"""``kvprefetch explain``: which model, which GPU, which step, and the report on the terminal or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..demo.cache_kind import CacheKind

if TYPE_CHECKING:
    from .explained import ExplainedModel

_MODEL_HELP = "A preset such as llama-3-70b, 'smollm2', a local folder, a .gguf file, or a hub id."
_GPU_HELP = "A GPU model of a database, an architecture such as sm_90, or NAME:sm_ARCH:SMS."


def explain(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)] = "smollm2",
    gpu: Annotated[
        str | None, typer.Option(help=_GPU_HELP, show_default="the present one, else the shipped database's")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            "--attn-implementation",
            "--attn",
            help="transformers' attention implementation: sdpa, eager, ...",
            show_default="what transformers chooses",
        ),
    ] = None,
    cache: Annotated[CacheKind, typer.Option(help="Preallocated, or growing with every token.")] = CacheKind.STATIC,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    capacity: Annotated[
        int | None,
        typer.Option(min=2, help="Keys that a static cache has room for.", show_default="4096, or what the model has"),
    ] = None,
    held: Annotated[
        int | None, typer.Option(min=1, help="Keys that the cache already holds.", show_default="1000, or what fits")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16.", show_default="the one that the model was saved in"),
    ] = None,
    q_len: Annotated[int, typer.Option(min=1, help="Tokens of the step, as in speculative decoding.")] = 1,
    tuning_db: Annotated[
        list[str] | None, typer.Option(help="A tuning database, file or folder, that goes before all others.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model's repository brings along.")
    ] = False,
    require: Annotated[
        str | None,
        typer.Option(help="Exit with 1 unless every decode attention has one of these verdicts, as in exact,bucket."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what of a model's decode step is lowered on a GPU, how, and why not: from its configuration, with no weights.

    Of a model on the hub nothing but config.json is downloaded. The step is traced as torch.compile would trace it;
    nothing is compiled or run, and no GPU is needed.
    """
    from rich.console import Console
    from rich.markup import escape

    from ..demo.progress import stage_progress
    from .explained import ExplainRequest, explain_model
    from .required_verdicts import parse_verdicts, shortfalls

    required = None if require is None else parse_verdicts(require)
    request = ExplainRequest(
        model, gpu, attention, cache, batch, capacity, held, dtype, q_len, trust_remote_code, tuple(tuning_db or ())
    )
    with stage_progress(Console(stderr=True)) as progress, progress.stage(f"trace a decode step of {model}"):
        explained = explain_model(request)
    _show(explained, as_json)
    lacking = [] if required is None else list(shortfalls(explained.report, required))
    for line in lacking:
        Console(stderr=True).print(f"[red]required:[/] {escape(line)}", soft_wrap=True)
    if lacking:
        raise typer.Exit(1)


def _show(explained: ExplainedModel, as_json: bool) -> None:
    import json

    from rich.console import Console
    from rich.markup import escape

    from ..site_table import site_table, summary_line

    if as_json:
        typer.echo(json.dumps(explained.to_dict(), indent=2))
        return
    console = Console()
    console.print(f"\n{escape(explained.describe())}\n{summary_line(explained.report)}\n", highlight=False)
    if explained.report.sites:
        console.print(site_table(explained.report))
    for remark in explained.remarks:
        console.print(f"[yellow]note:[/] {escape(remark)}", highlight=False)
    console.print(f"selection digest {explained.report.digest}", highlight=False)
