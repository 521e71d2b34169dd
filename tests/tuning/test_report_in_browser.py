"""The page in a real browser, where there is one: every figure is drawn, and nothing is complained of."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("plotly")
pytest.importorskip("jinja2")
pytest.importorskip("sklearn")

from prefetch_compiler.database.document import encode
from prefetch_compiler.database.key import parse_key
from prefetch_compiler.tuning.report.page import write_report

from . import synthetic

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=20000", "--window-size=1400,1000",
)  # fmt: skip
# A figure is drawn when it comes into view, and a headless browser on a busy machine may take longer to look at what
# is in view than it stays: here all that is laid out is in view, at once.
ALL_IN_VIEW = """<script>
window.IntersectionObserver = class {
  constructor(callback) { this.callback = callback; }
  observe(place) {
    queueMicrotask(() => this.callback([{ target: place, isIntersecting: place.offsetParent !== null }]));
  }
  unobserve() {}
};
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at the page with")


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    keys = [parse_key(f"bfloat16 32q/8kv d128 q1 b{batch} s1024 bhsd-tma bool") for batch in (1, 2)]
    _, studies = synthetic.tuned(tmp_path, keys, trials=16)
    database = tmp_path / "database.json"
    database.write_bytes(encode(synthetic.database(30, unmeasured=2)))
    page = write_report([str(database), str(studies)], tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    assert html.count("<head>") == 1
    page.write_text(html.replace("<head>", "<head>" + ALL_IN_VIEW), encoding="utf-8")
    dom, complaints = looked_at(page, tmp_path / "profile")
    assert complaints == []
    places = re.findall(r'<div class="plot[^"]*" data-figure="([^"]+)"', dom)
    drawn = re.findall(r'<div class="plot[^"]*js-plotly-plot" data-figure="([^"]+)"', dom)
    # The second study's figures are drawn when it is chosen.
    details = dom[dom.index("One study in detail") :].split('<div class="detail"')
    assert len(details) == 3
    hidden = set(re.findall(r'data-figure="([^"]+)"', details[2]))
    assert hidden
    assert set(drawn) == set(places) - hidden
    assert "30 rows</output>" in dom  # our script ran to its end


def looked_at(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what the console said.

    The browser's clock is virtual: on a busy machine it has been seen to run out before the scripts did. Such a look
    says nothing of the page, and is taken again, twice at most.
    """
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        if complaints or "js-plotly-plot" in done.stdout:
            break
    return done.stdout, complaints
