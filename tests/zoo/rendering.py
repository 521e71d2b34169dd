"""docs/coverage.md, from the record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from .cell import ATTENTIONS, CACHES, EXEMPLARS, Cell, all_cells
from .models import ZOO
from .outcome import Kind, Outcome
from .record import Record
from .workload import PROMPT, TOKENS, WORKLOADS, Workload
from .zoo_model import ZooModel

PATH = Path(__file__).parents[2] / "docs" / "coverage.md"

LABELS = {
    Kind.LOWERED: "**yes**",
    Kind.PARTLY: "in part",
    Kind.REFUSED: "refused",
    Kind.NOT_RECOGNISED: "no",
    Kind.NOT_COMPILED: "not compiled",
    Kind.UNSUPPORTED: "–",
}
MEANINGS = {
    Kind.LOWERED: "every attention of a decode step runs on our kernels",
    Kind.PARTLY: "some of its attentions do, or all of them under some of the workloads",
    Kind.REFUSED: "our backend sees the attention and leaves it to Inductor, for the reason in the note",
    Kind.NOT_RECOGNISED: "our backend sees no attention in the graph; a note says where torch.compile broke the graph",
    Kind.NOT_COMPILED: "torch.compile does not compile the step with Inductor either, for the reason in the note",
    Kind.UNSUPPORTED: "transformers itself does not run this, with the error in the note",
}
TITLES = {"sdpa": "SDPA", "eager": "eager", "flex_attention": "FlexAttention"}
# What to change, by what a reason says.
ADVICE = {
    "Tensor.item()": "The model asks the static cache for its length, a tensor, between scores and softmax, and "
    "`capture_scalar_outputs` does not help: torch.compile then fails. With a dynamic cache the length is a number.",
}
_CLASS = re.compile(r"\b[A-Z]\w*(ForCausalLM|LMHeadModel|ForConditionalGeneration)\b")


class Notes:
    """Numbered reasons, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def references(self, reasons: tuple[str, ...]) -> str:
        """`` [1] [2]``, or nothing."""
        return "".join(f" [{self._number(reason)}]" for reason in reasons)

    def _number(self, reason: str) -> int:
        return self._numbers.setdefault(_CLASS.sub("this architecture", reason), len(self._numbers) + 1)

    def lines(self) -> list[str]:
        """One line a note; a reason is code to Markdown, which would make its underscores italics."""
        return [
            f"{number}. `{reason.replace('`', chr(39))}`{_advice(reason)}" for reason, number in self._numbers.items()
        ]


def _advice(reason: str) -> str:
    return "".join(f". {advice}" for fragment, advice in ADVICE.items() if fragment in reason)


def render(record: Record) -> str:
    """The whole document."""
    notes = Notes()
    tables = [
        *_table(ZOO, CACHES, record, notes),
        "",
        "## With a quantised cache",
        "",
        "Keys and values are kept in float8_e4m3fn with one scale each, and dequantised before attention.",
        "",
        *_table(tuple(model for model in ZOO if model.name in EXEMPLARS), ("fp8",), record, notes),
    ]
    lines = [*_counts(record), "", "## By architecture", "", *tables, "", "## Notes", "", *notes.lines()]
    return _introduction(record) + "\n".join(lines) + "\n"


def _introduction(record: Record) -> str:
    versions = " and ".join(f"{library} {version}" for library, version in record.versions.items())
    workloads = "\n".join(f"- {_described(workload)}" for workload in WORKLOADS)
    meanings = "\n".join(f"| {LABELS[kind]} | {MEANINGS[kind]} |" for kind in Kind)
    return f"""\
# What is lowered in real models

<!-- Written by `python -m tests.zoo.coverage` from tests/zoo/coverage.json; a test compares the two. -->

{len(ZOO)} architectures of Hugging Face transformers, with one or two layers of tiny random weights, decode
{TOKENS} tokens after an eager prefill of {PROMPT}, each with every attention implementation and cache that it has.
Caches have the architecture's own layers: those with a window or a chunk keep that much, linear and convolutional
ones keep a state, and decoders behind an encoder have a second cache for what it said. Three workloads are run
(most cells of FlexAttention in the first only):

{workloads}

Whatever the table says, in every cell that runs the tokens are equal to eager's, and logits and cache err against
float64 at most twice what eager's err: a cell where they do not fails the tests, and is not in the table. With
FlexAttention masks are made before the step, as `generate` does. Kernels ran in Triton's
interpreter, on a CPU, in float32, with {versions}: this shows what is lowered, and not how fast.
`pytest tests/zoo --whole-zoo` checks every cell; the usual suite what is particular of an architecture.

| in the table | means |
| --- | --- |
{meanings}

Where workloads differ, each is named with its own. Numbers in brackets are notes, at the end.

"""


def _described(workload: Workload) -> str:
    padding = f"left-padded by {', '.join(map(str, workload.padding))} tokens" if workload.masked else "no padding mask"
    queries = (
        f"{workload.q_len} tokens a step, as when drafts are verified" if workload.q_len > 1 else "one token a step"
    )
    return f"**{workload}**: batch {workload.batch}, {padding}; {queries}."


def overall(outcomes: Mapping[str, Outcome]) -> Kind:
    """One kind for a cell: that of the workloads that transformers runs, if they agree."""
    kinds = {outcome.kind for outcome in outcomes.values()}
    ran = kinds - {Kind.UNSUPPORTED} or kinds
    return ran.pop() if len(ran) == 1 else Kind.PARTLY


def _counts(record: Record) -> list[str]:
    lines = [
        "## Counts",
        "",
        "Cells, that is architectures, by attention implementation and cache.",
        "",
        f"| implementation | cache | {' | '.join(LABELS[kind] for kind in Kind)} |",
        f"| --- | --- | {' | '.join('---:' for _ in Kind)} |",
    ]
    for attention in ATTENTIONS:
        for cache in (*CACHES, "fp8"):
            cells = [cell for cell in all_cells() if (cell.attention, cell.cache) == (attention, cache)]
            counts = Counter(overall(record.of(cell)) for cell in cells if record.of(cell))
            lines.append(f"| {TITLES[attention]} | {cache} | {' | '.join(str(counts[kind]) for kind in Kind)} |")
    return lines


def _table(models: tuple[ZooModel, ...], caches: tuple[str, ...], record: Record, notes: Notes) -> list[str]:
    columns = [(attention, cache) for attention in ATTENTIONS for cache in caches]
    lines = [
        f"| architecture | {' | '.join(f'{TITLES[attention]}, {cache}' for attention, cache in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for model in models:
        texts = [cell_text(Cell(model, attention, cache), record, notes) for attention, cache in columns]
        lines.append(f"| {model} | {' | '.join(texts)} |")
    return lines


def cell_text(cell: Cell, record: Record, notes: Notes) -> str:
    """What the table says of a cell: one text if its workloads agree, else one for each kind of outcome."""
    by_text: dict[str, list[str]] = {}
    for name, outcome in record.of(cell).items():
        by_text.setdefault(_outcome_text(outcome, cell.model, notes), []).append(name)
    if len(by_text) == 1:
        return next(iter(by_text))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in by_text.items())


def _outcome_text(outcome: Outcome, model: ZooModel, notes: Notes) -> str:
    label = f"{outcome.lowered} of {model.sites}" if outcome.kind is Kind.PARTLY else LABELS[outcome.kind]
    return label + notes.references(outcome.reasons)
