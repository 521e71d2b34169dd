"""The report: what stands on the page is what is in the file, and nothing of it can act."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest

from prefetch_compiler import cli
from prefetch_compiler.config import KernelConfig
from prefetch_compiler.database.document import Database, encode
from prefetch_compiler.database.errors import CorruptDatabaseError
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.database.record import (
    DeviceIdentity,
    Evidence,
    FillTiming,
    Measurement,
    Rival,
    Timing,
    Toolchain,
    TuningRecord,
)
from prefetch_compiler.tuning.errors import InvalidStorageError

pytest.importorskip("plotly")
pytest.importorskip("jinja2")
pytest.importorskip("sklearn")

from prefetch_compiler.tuning.report import studies_section
from prefetch_compiler.tuning.report.coverage import grids, share_colour
from prefetch_compiler.tuning.report.embedded import script_json
from prefetch_compiler.tuning.report.errors import EmptyReportError, ReportNotWrittenError, ReportSourceError
from prefetch_compiler.tuning.report.page import render, write_report
from prefetch_compiler.tuning.report.source import RecordsSource, StudiesSource, open_source
from prefetch_compiler.tuning.report.study_facts import facts_of
from prefetch_compiler.tuning.report.theme import bandwidth, byte_axis, byte_size, microseconds

from . import synthetic
from .fakes import TOOLCHAIN

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--"
KEY = parse_key("bfloat16 32q/8kv d128 q1 b4 s4096 bhsd-tma bool")


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, scripts, and text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html, self.text = html, ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._open != "style":
            self.text += data

    @property
    def figures(self) -> dict[str, Any]:
        return {str(a["id"]): json.loads(text) for a, text in self.scripts if a.get("type") == "application/json"}

    def figure(self, label: str) -> Any:
        """The figure whose place has the label."""
        (place,) = (attributes for _, attributes in self.elements if attributes.get("aria-label") == label)
        return self.figures[str(place["data-figure"])]

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.elements)


def page_of(*records: TuningRecord, device: DeviceIdentity = synthetic.DEVICE) -> Page:
    return Page(render([RecordsSource("some.json", Database(device, records))]))


def record(median_us: float = 10.0, gain: float = 1.2, depth: int = 0, batch: int = 4, **changes: Any) -> TuningRecord:
    """Of a cache that takes 8 MiB a sequence of 4096 keys... and of times that are easy to check."""
    key = KEY.at(batch=batch, capacity=4096)
    config = KernelConfig(64, 4, 4, 3, prefetch_depth=depth)
    timing = Timing(median_us, median_us * 0.9, median_us * 1.2)
    measurement = Measurement(
        timing=timing,
        default=Rival(config, Timing(median_us * gain, median_us * gain, median_us * gain)),
        best_depth0=Rival(replace(config, prefetch_depth=0), timing),
        fills=(FillTiming(512, 1 << 20, 5.0, 4.0), FillTiming(4096, 1 << 23, 15.0, 12.0)),
        ceiling_share=0.8,
        error=0.5,
    )
    evidence = Evidence(TOOLCHAIN, 64, 0, "2026-03-01T10:00:00Z", measurement)
    return TuningRecord(key, config, replace(evidence, **changes))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A database and its studies as a tuning job leaves them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    keys = [KEY.at(batch=1, capacity=1024), KEY.at(batch=16, capacity=4096)]
    return synthetic.tuned(tmp_path_factory.mktemp("tuned"), keys, trials=24)


# What the page says


def test_figures_show_every_measured_record() -> None:
    page = page_of(record(batch=1), record(batch=2, gain=1.5), record(batch=8, measurement=None, modelled_us=3.0))
    (points,) = (trace for trace in page.figure("Share of the read ceiling against KV bytes")["data"])
    assert points["name"] == "32q/8kv d128"
    assert points["x"] == [1 << 23] * 2
    assert points["y"] == [0.8] * 2
    bars = {
        trace["name"]: trace
        for trace in page.figure("Gain over the heuristic and over the best without prefetch")["data"]
    }
    assert bars["against the heuristic"]["x"] == pytest.approx([0.2, 0.5])
    assert bars["against the best without prefetch"]["x"] == pytest.approx([0, 0])
    speeds = page.figure("Bandwidth against bytes")["data"]
    full = next(trace for trace in speeds if trace["name"] == "full cache")
    assert full["y"] == pytest.approx([(1 << 23) / 15 / 1000] * 2)  # bytes over microseconds, in GB/s


def test_tables_show_every_record() -> None:
    page = page_of(record(batch=1), record(batch=8, measurement=None, modelled_us=3.0))
    rows = [attributes for tag, attributes in page.elements if tag == "tr" and "data-heads" in attributes]
    assert [row["data-heads"] for row in rows] == ["32q/8kv d128"] * 2
    for text in (KEY.at(batch=1, capacity=4096).name, "10.0 µs", "9.00–12.0 µs", "80.0%", "1.200×", "~3.00 µs"):
        assert text in page.text
    assert page.text.count("not measured") == 2  # in the legend and in the table


def test_what_won_is_counted_by_bytes() -> None:
    page = page_of(*(record(batch=2**n, depth=min(n, 2)) for n in range(4)))
    figure = page.figure("prefetch depth of the winners by KV bytes")
    assert {trace["name"]: trace["y"] for trace in figure["data"]} == {"0": [0.25], "1": [0.25], "2": [0.5]}
    assert figure["data"][0]["x"] == ["8M"]


def test_prefetching_is_shown_where_it_won() -> None:
    assert "no winner prefetches" in page_of(record()).text
    few = page_of(record(depth=2), record(batch=1))
    assert "1 of 2 winners prefetch" in few.text
    assert f"{record().key.name}: 1.000×, b64-s4-w4-st3-p2line" in few.text
    page = page_of(*(record(batch=2**n, depth=n and 2) for n in range(4)))
    (box,) = page.figure("Gain of prefetching by depth")["data"]
    assert box["name"] == "depth 2<br>3 of 4"


def test_coverage_has_a_cell_for_every_batch_and_capacity() -> None:
    def at(batch: int, capacity: int, **changes: Any) -> TuningRecord:
        return replace(record(**changes), key=KEY.at(batch=batch, capacity=capacity))

    other = replace(record(), key=parse_key("float16 2q/2kv d64 q1 b2 s2048 bhsd-tma bool"))
    first, second = grids([at(1, 1024), at(16, 4096), at(16, 1024, measurement=None, modelled_us=2.0), other])
    assert (first.shape, first.batches, first.capacities) == (
        "bfloat16 32q/8kv d128 q1 bhsd-tma bool",
        (1, 2, 4, 8, 16),
        ("1K", "2K", "4K"),
    )
    assert [[cell.label for cell in row] for row in first.rows] == [
        ["80", "·", ""],
        ["·", "·", ""],
        ["", "", ""],
        ["", "·", "·"],
        ["~", "·", "80"],
    ]
    assert (first.recorded, first.served, first.cells) == (3, 8, 15)
    assert first.rows[3][2].tip == "served by the record of batch 16, capacity 4096"
    assert (second.capacities, second.recorded) == (("2K",), 1)


def test_of_two_records_of_a_key_coverage_shows_the_measured_one() -> None:
    newer = replace(TOOLCHAIN, triton="3.7.0")
    modelled = record(toolchain=newer, date="2027-01-01", measurement=None, modelled_us=1.0)
    (grid,) = grids([record(), modelled])
    assert grid.rows[0][0].label == "80"


def test_better_shares_are_greener() -> None:
    def red_minus_green(share: float) -> int:
        colour = share_colour(share)
        return int(colour[1:3], 16) - int(colour[3:5], 16)

    values = [red_minus_green(share / 100) for share in range(0, 121, 5)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0 > values[-1]


def test_provenance_names_what_records_came_about_with() -> None:
    newer = Toolchain("split_kv_decode", "f" * 64, "2.12.0", "3.7.0", "590.1")
    page = page_of(record(), record(toolchain=newer, date="2026-04-05"))
    for text in ("NVIDIA H200", "132 SMs", "2.12.0", "3.7.0", "590.1", "f" * 12, "2026-04-05", "580.00"):
        assert text in page.text


@pytest.mark.parametrize(
    ("time_us", "shown"),
    [
        (0.5, "0.50 µs"),
        (9.994, "9.99 µs"),
        (9.996, "10.0 µs"),
        (99.96, "100 µs"),
        (999.6, "1.00 ms"),
        (123456.0, "123 ms"),
    ],
)
def test_times_have_three_digits(time_us: float, shown: str) -> None:
    assert microseconds(time_us) == shown


def test_sizes_and_speeds() -> None:
    assert [byte_size(size) for size in (512, 1536, 1 << 20, 3 << 30)] == ["512 B", "1.5 KiB", "1 MiB", "3 GiB"]
    assert [bandwidth(speed) for speed in (812_000, 4_520_000)] == ["812 GB/s", "4.52 TB/s"]


@pytest.mark.parametrize("sizes", [[5e5], [1.0, 2.0], [1e3, 1e12], [3 << 20, 1 << 22]])
def test_a_byte_axis_holds_its_values_with_a_few_ticks(sizes: list[float]) -> None:
    axis = byte_axis(sizes, "")
    low, high = axis["range"]
    assert all(low <= math.log10(size) <= high for size in sizes)
    assert len(axis["tickvals"]) == len(set(axis["ticktext"])) <= 9


# Studies


def test_a_study_is_shown_with_optunas_own_figures(tuned: tuple[Path, Path]) -> None:
    page = Page(render([open_source(str(tuned[1]))]))
    labels = Counter(str(a["aria-label"]) for _, a in page.elements if "data-figure" in a)
    assert labels["Time against prefetch depth"] == 3  # of both, and of each
    for label in ("Optimisation history", "Parameter importances", "Parallel coordinates"):
        assert labels[label] == 2
    assert labels["Slices"] >= 2 * 4
    assert labels["Contours"] == 2 * 3
    options = [a for tag, a in page.elements if tag == "option"]
    assert len(options) == 2
    assert page.text.count("s1024") > 1


def test_the_best_at_each_depth_is_everything_else_at_its_best(tuned: tuple[Path, Path]) -> None:
    source = open_source(str(tuned[1]))
    assert isinstance(source, StudiesSource)
    for study in source.studies:
        facts = facts_of(study)
        fastest: dict[int, float] = {}
        for trial in study.trials:
            if trial.value is not None and "same_as" not in trial.user_attrs["result"]:
                depth = KernelConfig.decode(trial.user_attrs["config"]).prefetch_depth
                fastest[depth] = min(trial.value, fastest.get(depth, math.inf))
        assert {depth: trial.objective_us for depth, trial in facts.by_depth().items()} == fastest
        assert facts.counted == 24
        assert facts.best is not None
        assert facts.best.objective_us == study.best_value
        assert facts.gain is not None
        assert facts.gain >= 1
        assert facts.published


def test_a_database_and_its_studies_share_a_page(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    out = write_report([str(path) for path in tuned], tmp_path / "report.html")
    page = Page(out.read_text("utf-8"))
    assert "Coverage" in page.text
    assert "Optimisation history" in page.text


def test_only_some_studies_are_drawn_one_by_one(tuned: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies_section, "MAX_STUDIES_IN_DETAIL", 1)
    page = Page(render([open_source(str(tuned[1]))]))
    assert "1 more studies are in the table only" in page.text
    only = Page(render([open_source(str(tuned[1]))], only="s1024 "))
    assert "s4096" not in only.text
    with pytest.raises(EmptyReportError):
        render([open_source(str(tuned[1]))], only="no such study")


def foreign_study(**arguments: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(**arguments)


def test_studies_of_others_are_shown_as_far_as_they_go() -> None:
    study = foreign_study(study_name="theirs")
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_int("n", 1, 3), n_trials=12)
    page = Page(render([StudiesSource("memory", [study])]))
    assert "theirs" in page.text
    assert page.figure("Optimisation history")["data"]


@pytest.mark.parametrize("trials", [1, 2])
def test_small_and_odd_studies_make_a_page(trials: int) -> None:
    several = foreign_study(study_name="several", directions=["minimize", "minimize"])
    several.optimize(lambda trial: (trial.suggest_float("x", -1, 1), 1.0), n_trials=trials)
    pruned = foreign_study(study_name="pruned")
    for _ in range(trials):
        pruned.tell(pruned.ask(), state=optuna.trial.TrialState.PRUNED)
    constant = foreign_study(study_name="constant")
    constant.optimize(lambda trial: 3.0 + 0 * trial.suggest_int("n", 2, 2), n_trials=trials)
    page = Page(render([StudiesSource("memory", [constant, pruned, several])]))
    assert page.count("option") == 3


# Safety


def hostile_database() -> Database:
    bad = replace(TOOLCHAIN, driver=HOSTILE, torch=HOSTILE, template_hash="0" * 64)
    return Database(DeviceIdentity(HOSTILE, "cuda", 90, 132), (record(toolchain=bad), record(batch=1, depth=1)))


def hostile_study() -> optuna.Study:
    study = foreign_study(study_name=HOSTILE)
    for name in ("key", "device", "torch", "default", "published"):
        study.set_user_attr(name, HOSTILE)

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("config", KernelConfig(64, trial.number + 1, 4, 2).encode())
        trial.set_user_attr("source", HOSTILE)
        trial.set_user_attr("result", {"counts": True, "fills": [[1, 1, 1.0, 1.0]]})
        return trial.suggest_float(HOSTILE, 1, 2) + trial.suggest_categorical(HOSTILE * 2, [0, 1]) * 0.1

    study.optimize(objective, n_trials=8)
    return study


def test_hostile_names_stay_text() -> None:
    clean = page_of(record(), record(batch=1, depth=1))
    page = Page(render([RecordsSource(HOSTILE, hostile_database()), StudiesSource(HOSTILE, [hostile_study()])]))
    assert HOSTILE in page.text
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements} | {"select", "option", "h2"}
    assert page.count("img") == 0
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    # Two scripts run, Plotly and ours; the others are data.
    running = [attributes for attributes, _ in page.scripts if attributes.get("type") != "application/json"]
    assert len(running) == 2
    assert all(attributes.get("nonce") for attributes in running)
    assert "alert(" in json.dumps(page.figures)
    assert all("<" not in text for attributes, text in page.scripts if "nonce" not in attributes)


def test_labels_of_ours_are_escaped_where_plotly_reads_html() -> None:
    page = Page(render([StudiesSource("memory", [hostile_study()])]))
    labels = json.dumps(page.figure("Time against prefetch depth"))
    assert "&lt;img" in labels
    assert "<img" not in labels


def test_json_can_end_no_script() -> None:
    data = {"<>&\u2028\u2029": [HOSTILE, 1.5, None]}
    embedded = str(script_json(data))
    assert json.loads(embedded) == data
    assert not set("<>&\u2028\u2029") & set(embedded)


def test_the_page_loads_nothing() -> None:
    page = page_of(record())
    assert not [a for _, a in page.elements if {"src", "href", "srcset", "action"} & set(a)]
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy
    nonces = {a.get("nonce") for a, _ in page.scripts if "nonce" in a}
    assert len(nonces) == 1
    assert f"'nonce-{nonces.pop()}'" in policy
    assert "url(" not in page.html[: page.html.index("</style>")]


def test_every_place_has_its_figure() -> None:
    page = Page(render([RecordsSource("a", synthetic.database(40))]))
    places = [attributes["data-figure"] for _, attributes in page.elements if "data-figure" in attributes]
    assert sorted(str(place) for place in places) == sorted(page.figures)


def test_two_thousand_records_make_a_bounded_page() -> None:
    database = synthetic.database()
    html = render([RecordsSource("a", database)])
    assert len(database.records) > 1900
    assert html.count("plotly.js v") == 1
    assert len(html) < 12e6


# Sources


def test_sources_are_told_apart(tuned: tuple[Path, Path]) -> None:
    records, studies = (open_source(str(path)) for path in tuned)
    assert isinstance(records, RecordsSource)
    assert len(records.database.records) == 2
    assert isinstance(studies, StudiesSource)
    assert len(studies.studies) == 2


def test_a_folder_stands_for_its_only_database(tmp_path: Path) -> None:
    with pytest.raises(ReportSourceError, match="the folder's are: none"):
        open_source(str(tmp_path))
    (tmp_path / "one.json").write_bytes(encode(synthetic.database(3)))
    source = open_source(str(tmp_path))
    assert isinstance(source, RecordsSource)
    assert source.name.endswith("one.json")
    (tmp_path / "two.json").write_bytes(encode(synthetic.database(3)))
    with pytest.raises(ReportSourceError, match=r"one\.json, two\.json"):
        open_source(str(tmp_path))


def test_another_sqlite_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ReportSourceError, match="without Optuna's tables"):
        open_source(str(path))
    assert path.read_bytes() == before


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(ReportSourceError, match="No such file"):
        open_source(str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(CorruptDatabaseError):
        open_source(str(text))
    with pytest.raises(InvalidStorageError, match=r"postgresql://me:\*\*\*@"):
        open_source("postgresql://me:secret@localhost:1/none")


def test_nothing_to_show_and_nowhere_to_put_it(tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_bytes(encode(Database(synthetic.DEVICE)))
    with pytest.raises(EmptyReportError, match=r"empty\.json"):
        write_report([str(empty)], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    full = tmp_path / "full.json"
    full.write_bytes(encode(synthetic.database(2)))
    with pytest.raises(ReportNotWrittenError, match="No such file"):
        write_report([str(full)], tmp_path / "none" / "report.html")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["kvprefetch", "report", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        return int(exit_info.value.code or 0)

    database, out = tmp_path / "a.json", tmp_path / "page.html"
    database.write_bytes(encode(synthetic.database(3)))
    assert run(str(database), "--out", str(out)) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Page(out.read_text("utf-8")).figures
    assert run(str(tmp_path / "none.json"), "--out", str(out)) == 2
    assert "No such file" in " ".join(capsys.readouterr().err.split())
