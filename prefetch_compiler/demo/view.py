"""A demonstration's result as people read it."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..site_table import site_table, summary_line
from .agreement import Difference
from .generation import INDUCTOR, KVPREFETCH
from .result import DemoResult
from .step_time import StepTime


def print_demo(result: DemoResult, console: Console) -> None:
    """Answer, agreement with eager, site table, and step times or why there are none."""
    dtype = str(result.dtype).removeprefix("torch.")
    console.print(f"\n[bold]{escape(result.model)}[/] on {result.device}, {dtype}")
    console.print(f"[bold]prompt[/]  {escape(result.prompt.text)}")
    console.print(f"[bold]answer[/]  {escape(result.compiled.text)}\n")
    _print_agreement(result, console)
    console.print(f"{summary_line(result.report)}\n")
    console.print(site_table(result.report))
    if result.interpreted:
        console.print(
            "No GPU was used: the kernels ran in Triton's interpreter, which shows that they compute the right thing "
            "and says nothing about speed. [bold]None of the times above is a timing of the kernels.[/]"
        )
    if result.steps:
        _print_steps(result, console)


def _print_agreement(result: DemoResult, console: Console) -> None:
    if result.difference is None:
        count = len(result.compiled.tokens)
        console.print(f"[green]✓[/] all {count} tokens equal eager's")
        return
    console.print("[red]✗ the tokens differ from eager's[/]")
    console.print(f"  eager:      {escape(result.eager.text)}")
    console.print(f"  kvprefetch: {escape(result.compiled.text)}")
    console.print(f"  {describe_difference(result.difference)}")


def describe_difference(difference: Difference) -> str:
    """Where the answers part, and how sure eager was there."""
    step = difference.step
    if difference.gap is None:
        stopped = "eager" if difference.eager_token is None else "the other"
        return f"at new token {step} {stopped} had stopped"
    tie = difference.resolution is not None and difference.gap <= 2 * difference.resolution
    return (
        f"first at new token {step}: eager chose {difference.eager_token} with logit {difference.eager_logit:.4f}, "
        f"and gave {difference.other_token} {difference.eager_logit_of_other:.4f}; the gap is {difference.gap:.4f}, "
        f"where the dtype resolves {difference.resolution:.4f}: {'a near-tie' if tie else 'no tie'}"
    )


def _print_steps(result: DemoResult, console: Console) -> None:
    table = Table(title="decode step, both compiled in the same run", title_justify="left")
    for heading in ("backend", "step, ms (p20–p80)", "whole token, ms", "tokens/s", "tokens equal eager's"):
        table.add_column(heading)
    for step in result.steps:
        table.add_row(
            step.backend,
            f"{step.step_ms:.3f} ({step.step_p20_ms:.3f}–{step.step_p80_ms:.3f})",
            f"{step.token_ms:.3f}",
            f"{1e3 / step.token_ms:.0f}",
            "yes" if step.difference is None else "no: " + describe_difference(step.difference),
        )
    console.print(table)
    console.print(_comparison(result.steps, result.prompt.length, result.settings.capacity))


def _comparison(steps: list[StepTime], held: int, capacity: int) -> str:
    by_backend = {step.backend: step for step in steps}
    ratio = by_backend[INDUCTOR].step_ms / by_backend[KVPREFETCH].step_ms
    return (
        f"Median of {by_backend[KVPREFETCH].steps} steps each, batch 1, {held} tokens and more held of {capacity}; "
        f"Inductor's step takes {ratio:.2f} times as long. 'whole token' adds what generate() does around the step."
    )
