"""Which model a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefetch_compiler.demo import model_source
from prefetch_compiler.demo.errors import ModelNotLoadedError
from prefetch_compiler.demo.model_source import ModelSource, find_model

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def demo_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source, "_require_demo_packages", lambda: None)


def test_a_folder_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "other.gguf").touch()
    assert find_model(str(tmp_path)) == ModelSource(str(tmp_path), str(tmp_path))


def test_a_folder_with_one_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    source = find_model(str(tmp_path))
    assert source.load_arguments() == {"gguf_file": "weights.gguf", "trust_remote_code": False}


def test_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.touch()
    assert find_model(str(file)) == ModelSource(str(file), str(tmp_path), "weights.gguf")


@pytest.mark.parametrize("files", [(), ("a.gguf", "b.gguf")])
def test_a_folder_without_one_clear_model_is_refused(tmp_path: Path, files: tuple[str, ...]) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ModelNotLoadedError, match=f"no config.json and {len(files)} .gguf files"):
        find_model(str(tmp_path))


def test_anything_else_is_a_hub_id() -> None:
    assert find_model("org/name") == ModelSource("org/name", "org/name")


def test_a_path_that_does_not_exist_is_no_hub_id() -> None:
    with pytest.raises(ModelNotLoadedError, match="no such folder"):
        find_model("/no/such/model")
