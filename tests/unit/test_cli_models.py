"""demo and explain from end to end, on a tiny model made here: pure JSON, equal tokens, every site lowered; explain
without the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prefetch_compiler import cli
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.database.record import DeviceIdentity

from ..database.examples import measured

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ("<pad>", "<eos>", "<unk>", "what", "is", "the", "capital", "of", "france", "paris")
LAYERS = 2


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama with grouped-query attention, and a tokenizer of ten words."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    words = tokenizers.Tokenizer(vocabulary)
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config_folder(model_folder: Path, tmp_path: Path) -> Path:
    """The same model, but nothing of it except its configuration."""
    folder = tmp_path / "config-alone"
    folder.mkdir()
    (folder / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    return folder


def run_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, Any]]:
    """Exit code, and what standard output holds, which must be JSON and nothing else."""
    monkeypatch.setattr("sys.argv", ["kvprefetch", *arguments, "--json"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return int(exit_info.value.code or 0), found


def test_demo_answers_as_eager_does_and_lowers_every_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path
) -> None:
    arguments = ("--prompt", "what is the capital of france", "--max-new-tokens", "4", "--dtype", "float32")
    code, found = run_json(monkeypatch, capsys, "demo", "--model", str(model_folder), *arguments)
    assert code == 0
    assert found["tokens_equal"]
    assert len(found["compiled"]["tokens"]) == 4
    sites = found["report"]["sites"]
    assert [site["verdict"] for site in sites] == ["heuristic"] * LAYERS
    assert found["interpreted"] == (not torch.cuda.is_available())
    assert len(found["steps"]) == (2 if torch.cuda.is_available() else 0)


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_explain_reports_every_layer_and_what_it_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_folder: Path, cache: str
) -> None:
    arguments = ("--cache", cache, "--held", "40", "--capacity", "128", "--batch", "2", "--q-len", "3")
    code, found = run_json(monkeypatch, capsys, "explain", str(config_folder), *arguments, "--gpu", "B200")
    assert code == 0
    assert (found["architecture"], found["attention"], found["gpu"]["arch"]) == ("LlamaForCausalLM", "sdpa", 100)
    assert found["dtype"] == "float32"  # the configuration's
    sites = found["report"]["sites"]
    assert [site["layer"] for site in sites] == [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]
    assert [site["verdict"] for site in sites] == ["heuristic"] * LAYERS
    assert all(" q3 " in site["spec"] and "b2 float32" in site["spec"] for site in sites)
    bytes_per_key = 2 * 2 * (16 + 16) * 4
    assert [site["kv_bytes_read"] for site in sites] == [43 * bytes_per_key] * LAYERS
    capacity = 128 if cache == "static" else 43
    assert [site["kv_bytes_capacity"] for site in sites] == [capacity * bytes_per_key] * LAYERS
    assert any("cache_implementation='static'" in remark for remark in found["remarks"]) == (cache == "dynamic")


STEP = ("--held", "40", "--capacity", "128", "--dtype", "float32")


def test_explain_requires_verdicts_and_takes_databases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_folder: Path, tmp_path: Path
) -> None:
    step = ("explain", str(config_folder), *STEP)
    monkeypatch.setattr("sys.argv", ["kvprefetch", *step, "--gpu", "L40S", "--require", "exact,bucket", "--json"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 1
    out, err = capsys.readouterr()
    before = json.loads(out)["report"]
    assert [site["verdict"] for site in before["sites"]] == ["heuristic"] * LAYERS
    (line,) = [line for line in err.splitlines() if "required:" in line]
    assert "model.layers.0-1.self_attn: heuristic, not bucket or exact" in line

    key = parse_key("float32 6q/2kv d16 q1 b1 s128 bhsd-tma bool")
    record = measured(key, config=KernelConfig(16, 2, 1, 2))
    path = tmp_path / "tuned.json"
    path.write_bytes(encode(Database(DeviceIdentity("NVIDIA L4", "cuda", 89, 58), (record,))))
    arguments = ("--gpu", "l4", "--require", "exact,bucket", "--tuning-db", str(path))
    code, found = run_json(monkeypatch, capsys, *step, *arguments)
    assert code == 0
    for site in found["report"]["sites"]:
        assert (site["verdict"], site["record"], site["config"]["block_kv"]) == ("exact", record.key.name, 16)
    assert found["report"]["selection_digest"] != before["selection_digest"]


def test_explain_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_folder: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["kvprefetch", "explain", str(config_folder), *STEP])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code in (0, None)
    text = " ".join(capsys.readouterr().out.split())
    for expected in ("layers 0–1: 2 sites", "heuristic", "20.5 KiB of 64.0 KiB a step", "S128 b1"):
        assert expected in text, text


def test_explain_refuses_a_word_that_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kvprefetch", "explain", "--require", "tuned"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert "'tuned'" in capsys.readouterr().err
