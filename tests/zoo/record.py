"""The record of what became of every cell: coverage.json, which the table in docs/ is rendered from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
import transformers

from .cell import Cell, all_cells
from .outcome import Outcome

PATH = Path(__file__).with_name("coverage.json")


class Record(msgspec.Struct, forbid_unknown_fields=True):
    """``cells``: a cell's key -> a workload's name -> outcome. ``versions``: of the libraries that it was made with,
    since what a library's model looks like to the compiler may differ in another version."""

    versions: dict[str, str]
    cells: dict[str, dict[str, Outcome]]

    @property
    def is_of_these_versions(self) -> bool:
        return self.versions == installed_versions()

    def of(self, cell: Cell) -> Mapping[str, Outcome]:
        """A workload's name -> outcome, of one cell; empty if it was never judged."""
        return self.cells.get(cell.key, {})


def installed_versions() -> dict[str, str]:
    """Of the libraries whose changes may change an outcome, to the minor release."""
    return {library.__name__: ".".join(library.__version__.split(".")[:2]) for library in (torch, transformers)}


def read() -> Record:
    """The record as it is, or an empty one."""
    if not PATH.exists():
        return Record(installed_versions(), {})
    return msgspec.json.decode(PATH.read_bytes(), type=Record)


def write(record: Record) -> None:
    """One line a cell, in the table's order; cells that are no more are dropped."""
    lines = [f"{_json(cell.key)}: {_json(record.cells[cell.key])}" for cell in all_cells() if cell.key in record.cells]
    body = ",\n    ".join(lines)
    PATH.write_text(f'{{\n  "versions": {_json(record.versions)},\n  "cells": {{\n    {body}\n  }}\n}}\n')


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
