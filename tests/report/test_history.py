"""The page of a history: curves, and the commits at which a level changed."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynbench.analysis.trends import changes
from dynbench.errors import UserError
from dynbench.report.drawings import Trend
from dynbench.report.history import HistoryPage, build, write_history
from dynbench.store.history import History, record
from dynbench.store.run import RunWriter
from tests.report.made_up_gate import LESS, cell, gate
from tests.report.test_pages import HOSTILE, Page, plain
from tests.store.histories import COMMIT, made_up_manifest, made_up_run, timed

RUNS, STEP = 24, 15


def make(folder: Path, runs: int = RUNS) -> History:
    """Runs of which compaction is 8 % slower from `STEP` on, with another torch, and one run before is an outlier."""
    rng = np.random.default_rng(0)
    for i in range(runs):
        speedup = 1.5 * (1 + rng.normal(0, 0.005)) * (0.92 if i >= STEP else 1) * (0.7 if i == 5 else 1)
        machine = 1 + rng.normal(0, 0.1)  # slower and faster days
        software = {"torch": "2.13.0" if i < STEP else "2.14.0", "python": "3.11.7"}
        writer = RunWriter.create(folder / f"run-{i}", made_up_manifest(i, software=software))
        writer.append_cell(timed("compaction", speedup, 2 * machine / speedup))
        writer.append_cell(timed("masking", 0.8 * (1 + rng.normal(0, 0.005)), 2.5 * machine))
        writer.append_cell(timed("plain", None, 2 * machine))
        record(writer.path, str(folder / "history.sqlite"))
    return History.open(str(folder / "history.sqlite"))


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    return make(tmp_path_factory.mktemp("history"))


@pytest.fixture(scope="module")
def data(history: History) -> HistoryPage:
    return build(history)


@pytest.fixture(scope="module")
def folder(history: History, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    written = write_history(history, (), ("html", "md"), out)
    assert written == [out / "history.html", out / "history.md"]
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "history.html").read_text(encoding="utf-8"))


def label(run: int) -> str:
    return f"{run:04x}{COMMIT[4:8]}"


def test_the_change_is_found_where_it_is_and_nothing_else(history: History) -> None:
    (change,) = (c for s in history.series() for c in changes(s))
    assert change.series.key.arm.name == "compaction"
    assert (change.run.label, change.before.label) == (label(STEP), label(STEP - 1))
    assert change.found.change == pytest.approx(-0.08, abs=0.01)
    assert change.quantity == "speed-up" and not change.better
    assert change.also == ["torch 2.13.0 -> 2.14.0"]


def test_of_the_baseline_the_time_is_followed_and_longer_is_worse(tmp_path: Path) -> None:
    for i in range(12):  # 2 x (1 + number / 1000) ms: 50 % more from the seventh run on
        record(made_up_run(tmp_path, i + 500 * (i >= 6), speedup=1.5), str(tmp_path / "h.sqlite"))
    found = [c for s in History.open(str(tmp_path / "h.sqlite")).series(["net"]) for c in changes(s)]
    assert {c.series.key.arm.name for c in found} == {"plain"}
    assert all(c.quantity == "time" and not c.better for c in found)


def test_the_page_and_the_markdown_tell_the_change(page: Page, folder: Path) -> None:
    shown = plain(page)
    markdown = " ".join((folder / "history.md").read_text(encoding="utf-8").split())
    told = r"compaction: the speed-up against plain went from 1.5\dx to 1.3\dx \(-\d.\d %\)"
    sentence = f"{told}, after {label(STEP - 1)}"
    for text in (shown, markdown):
        assert re.search(sentence, text)
        assert label(STEP) in text
        assert "Changed at the same time: torch 2.13.0" in text
        assert "worse" in text
        assert "24 of 24 commits, 2026-01-01 to 2026-01-01" in text


def test_a_curve_per_cell_with_its_change_and_what_stands_out(data: HistoryPage) -> None:
    (group,) = data.figures
    (panel,) = group.panels
    assert isinstance(panel.drawing, Trend)
    curves = {c.name: c for c in panel.drawing.curves}
    assert curves.keys() == {"compaction", "masking", "plain"}
    compaction = curves["compaction"]
    assert (compaction.runs, compaction.changes) == (list(range(RUNS)), [STEP])
    assert compaction.outliers[5] and sum(compaction.outliers) <= 2
    assert len(compaction.speedups) == len(compaction.item_ms) == RUNS
    assert not curves["plain"].speedups and curves["plain"].static
    assert panel.drawing.labels == [label(i) for i in range(RUNS)]
    assert f"changed at {label(STEP)}" in panel.alt


def test_tables_have_the_newest_results_and_all_runs(data: HistoryPage) -> None:
    tables = {b.table.key: b.table for s in data.sections for b in s.blocks if b.table is not None}
    assert len(tables["changes"].rows) == 1 and len(tables["runs"].rows) == RUNS
    latest = [[v.text for v in row] for row in tables["latest"].rows]
    assert [row[0] for row in latest] == ["compaction", "masking", "plain"]
    assert label(STEP) in latest[0] and label(0) in latest[1]
    assert "reference" in latest[2]
    runs = [row[0].text for row in tables["runs"].rows]
    assert runs == [label(i) for i in reversed(range(RUNS))]


def test_the_page_asks_for_nothing_from_outside_and_links_lead_somewhere(page: Page, folder: Path) -> None:
    html = (folder / "history.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([\w.-]+)", html)) <= {"www.w3.org"}
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert all(str(v).startswith("#") for k, v in attributes.items() if k in ("href", "src"))
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    assert {str(a["href"])[1:] for a in page.all("a")} <= set(names)
    assert "@media (prefers-color-scheme: dark)" in html
    assert [a["aria-label"] for a in page.all("svg")] and len(page.all("svg")) == 1


def test_markdown_links_figures_that_are_there(folder: Path) -> None:
    linked = re.findall(r"\]\((figures/[^)]+\.svg)\)", (folder / "history.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(f"figures/{p.name}" for p in (folder / "figures").glob("*.svg")) != []


def test_few_runs_have_no_change_and_one_no_curve(tmp_path: Path) -> None:
    one = build(make(tmp_path / "one", runs=1))
    (panel,) = one.figures[0].panels
    assert panel.absent == "there is one comparable run so far"
    assert one.newest == []
    few = build(make(tmp_path / "few", runs=5))
    said = [text for s in few.sections for b in s.blocks for text in b.text]
    assert "No level changed." in said
    assert any("fewer than 6 comparable runs" in text for text in said)


def test_an_empty_history_and_unknown_names_are_refused(history: History, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results yet"):
        build(History.open(str(tmp_path / "new.sqlite"), create=True))
    with pytest.raises(UserError, match="no results of 'nett'; it has: net"):
        build(history, ["nett"])
    with pytest.raises(UserError, match="unknown report format 'htm'; did you mean html"):
        write_history(history, (), ("htm",), tmp_path)


def test_what_users_write_stays_text(tmp_path: Path) -> None:
    address = str(tmp_path / "h.sqlite")
    for i in range(2):
        info = {"net": made_up_manifest(0).workloads["net"].model_dump()}
        told: dict[str, Any] = {"software": {"torch": HOSTILE}, "hardware": {"name": HOSTILE}, "workloads": info}
        writer = RunWriter.create(tmp_path / f"r{i}", made_up_manifest(i, **told, git={"commit": HOSTILE}))
        decisions = {"source": "learned", "label": HOSTILE}
        writer.append_cell(timed(HOSTILE, 1.5 + i, decisions=decisions))
        writer.append_cell(timed("plain", None, decisions=decisions))
        record(writer.path, address)
    write_history(History.open(address), (), ("html", "md"), tmp_path / "out")
    page = Page((tmp_path / "out" / "history.html").read_text(encoding="utf-8"))
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert HOSTILE.strip() in "".join(page.text)
    markdown = (tmp_path / "out" / "history.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "<b " not in markdown


def test_checks_have_a_table_with_or_without_runs(tmp_path: Path) -> None:
    history = History.open(str(tmp_path / "history.sqlite"), create=True)
    checks = [
        gate(cell(), commit=COMMIT),
        gate(cell("SLOWER", 1.1, LESS), commit=f"0002{COMMIT[4:]}", dirty=True, started="2026-01-03T10:11:00+00:00"),
    ]
    for found in checks:
        history.record_check(found)
    data = build(history)
    assert data.title == "1 workload over 2 checks" and not data.figures
    facts = dict(data.facts)
    assert facts["checks"] == "2 of 2 commits, 2026-01-01 to 2026-01-03; 1 with a regression, 0 that could not tell"
    html, md = write_history(history, (), (), tmp_path)
    for text in (plain(Page(html.read_text(encoding="utf-8"))), unescape(md.read_text(encoding="utf-8"))):
        assert "Only checks are recorded" in text and "No level changed" not in text
        assert "+10.0 % (+9.0 to +11.0)" in text and "SLOWER" in text and "executed FLOPs: 9 -> 8" in text
        assert text.index("00024567+") < text.index("01234567")
    record(made_up_run(tmp_path), str(tmp_path / "history.sqlite"))
    data = build(history)
    assert data.title == "2 workloads over 1 run and 2 checks"
    assert [s.key for s in data.sections[:5]] == ["changes", "latest", "runs", "checks", "compared"]
    assert build(history, ["net"]).title == "1 workload over 1 run"
    assert build(history, ["my_net"]).title == "1 workload over 2 checks"
