"""demo and explain from end to end, on a tiny model made here: pure JSON, equal tokens, every site lowered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prefetch_compiler import cli
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.device_identity import identity_of
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.key import key_of
from prefetch_compiler.device import profile
from prefetch_compiler.report import collect_reports

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
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path, cache: str
) -> None:
    arguments = ("--cache", cache, "--held", "40", "--capacity", "128", "--batch", "2", "--dtype", "float32")
    code, found = run_json(monkeypatch, capsys, "explain", str(model_folder), *arguments)
    assert code == 0
    sites = found["report"]["sites"]
    assert [site["verdict"] for site in sites] == ["heuristic"] * LAYERS
    bytes_per_key = 2 * 2 * (16 + 16) * 4
    assert [site["kv_bytes_read"] for site in sites] == [41 * bytes_per_key] * LAYERS
    capacity = 128 if cache == "static" else 41
    assert [site["kv_bytes_capacity"] for site in sites] == [capacity * bytes_per_key] * LAYERS


STEP = ("--held", "40", "--capacity", "128", "--dtype", "float32", "--layers", "1")


def test_explain_requires_verdicts_and_takes_databases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    step = ("explain", str(model_folder), *STEP)
    monkeypatch.setattr("sys.argv", ["kvprefetch", *step, "--require", "exact,bucket", "--json"])
    with collect_reports() as seen, pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 1
    out, err = capsys.readouterr()
    before = json.loads(out)["report"]
    assert [site["verdict"] for site in before["sites"]] == ["heuristic"]
    (line,) = [line for line in err.splitlines() if "required:" in line]
    assert "model.layers.0.self_attn: heuristic, not bucket or exact" in line

    spec = seen.sites[0].spec
    assert spec is not None
    device = profile(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    record = measured(key_of(spec), config=KernelConfig(16, 2, 1, 2))
    path = tmp_path / "tuned.json"
    path.write_bytes(encode(Database(identity_of(device), (record,))))
    code, found = run_json(monkeypatch, capsys, *step, "--require", "exact,bucket", "--tuning-db", str(path))
    assert code == 0
    (site,) = found["report"]["sites"]
    assert (site["verdict"], site["record"], site["config"]["block_kv"]) == ("exact", record.key.name, 16)
    assert found["report"]["selection_digest"] != before["selection_digest"]


def test_explain_refuses_a_word_that_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kvprefetch", "explain", "--require", "tuned"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 2
    assert "'tuned'" in capsys.readouterr().err
