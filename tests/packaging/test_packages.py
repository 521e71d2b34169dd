"""The package list of pyproject.toml is written out by hand, so it is compared with the folders that exist."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    table: dict[str, Any] = project["tool"]["setuptools"]
    return table


def test_every_package_folder_is_listed(setuptools_table: dict[str, Any]) -> None:
    folders = {path.parent for path in (REPOSITORY / "prefetch_compiler").rglob("__init__.py")}
    found = {".".join(folder.relative_to(REPOSITORY).parts) for folder in folders}
    found |= {"prefetch_compiler.templates", "prefetch_compiler.tuning_db"}
    assert set(setuptools_table["packages"]) == found


def test_every_mapped_folder_exists(setuptools_table: dict[str, Any]) -> None:
    for package, folder in setuptools_table["package-dir"].items():
        assert (REPOSITORY / folder / "__init__.py").is_file(), package
