"""What a report says of devices: side by side, and never compared with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dynbench.analysis.headline import contest
from dynbench.analysis.overview import summarise
from dynbench.report.content import Report, build
from dynbench.report.figures import draw
from dynbench.report.layout import theme
from dynbench.report.overview import build_overview
from dynbench.report.sustained import Load, Sustained
from dynbench.store.run import Run
from dynbench.store.schema import Cell, Startup
from tests.report import made_up
from tests.report.test_content import rows, tables

HERE, PHONE, LOST = "this-machine", "Phone (Chrome 156, WebAssembly)", "board"
LOAD = {
    "dynamic": [[60.0, 1.0, 50.0], [120.0, 1.1, 60.0], [180.0, 1.5, 71.0]],
    "dynamic, again": [[60.0, 1.0, 50.0]],
    "ResNet-38": [[60.0, 2.0, None], [120.0, 2.0, None]],
    "broken": [["x"], [1.0]],
}
DEVICES: dict[str, dict[str, Any]] = {
    HERE: {
        "target": HERE,
        "kind": "local",
        "cpu": "Made-up CPU",
        "jobs": {made_up.SKIPPED: {"status": "ok", "sustained": {"step_s": 60.0, "arms": LOAD}}},
    },
    PHONE: {
        "target": "browser",
        "kind": "browser",
        "browser": "Chrome 156",
        "jobs": {made_up.SKIPPED: {"status": "ok", "memory_bytes": 5e7, "notes": ["clock: steps of 5.0 us"]}},
    },
    LOST: {"target": LOST, "kind": "ssh", "jobs": {made_up.SKIPPED: {"status": "failed", "reason": "it vanished"}}},
}


def on(device: str, speed: float, slower: float = 1.0, workload: str = made_up.SKIPPED) -> list[Cell]:
    """The deployed networks at batch 1 on a device that is so many times as slow."""
    found = []
    for c in made_up.deployed(1, speed, workload=workload):
        group = c.group_id.replace("/cpu/", f"/{device}/")
        assert c.latency is not None
        latency = {key: getattr(c.latency, key) * slower for key in ("stream_ms", "item_ms", "batch_p50_ms")}
        changes: dict[str, Any] = {
            "device": device,
            "group_id": group,
            "cell_id": f"{group}/{c.arm.key}",
            "latency": c.latency.model_copy(update=latency),
            "startup": Startup(load_ms=20.0, first_run_ms=9.0, download_ms=None if device == HERE else 4.0),
            "candidates": [],
        }
        found.append(c.model_copy(update=changes))
    return found


def ahead(cells: list[Cell], saves: float) -> Cell:
    """The dynamic network among cells with decisions known ahead, which take a share of its time."""
    dynamic = next(c for c in cells if c.arm.kind == "strategy")
    assert dynamic.latency is not None
    arm = dynamic.arm.model_copy(update={"kind": "control", "live": False, "without": "deciding"})
    latency = {key: getattr(dynamic.latency, key) * (1 - saves) for key in ("stream_ms", "item_ms", "batch_p50_ms")}
    changes: dict[str, Any] = {"latency": dynamic.latency.model_copy(update=latency), "deployed_speedups": []}
    return dynamic.model_copy(update={"arm": arm, "cell_id": f"{dynamic.group_id}/{arm.key}"} | changes)


def lost(cells: list[Cell]) -> list[Cell]:
    """The same cells of a device that vanished."""
    kept = ("group_id", "cell_id", "workload", "decisions", "arm", "primary", "device", "batch_size", "threads")
    return [
        Cell(**{key: getattr(c, key) for key in kept}, deployed=True, status="failed", reason="it vanished")
        for c in cells
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cells = [*lost(on(LOST, 1.0)), *on(HERE, 1.2), *on(PHONE, 0.8, slower=3.0)]
    cells.append(ahead([c for c in cells if c.device == HERE], 0.25))
    refused = ahead([c for c in cells if c.device == PHONE], 0.0)
    gone: dict[str, Any] = {"status": "refused", "reason": "its graph takes no decisions", "latency": None}
    cells.append(refused.model_copy(update=gone))
    about = made_up.manifest(made_up.info(), devices=DEVICES)
    return Run.open(made_up.write_run(tmp_path_factory.mktemp("devices") / "run", about, cells))


@pytest.fixture(scope="module")
def report(run: Run) -> Report:
    return build(run)


def test_a_row_for_every_device_and_network(report: Report) -> None:
    speed = tables(report, "on-devices")[0]
    found = {(r["on_device"].text, r["network_there"].text): r for r in rows(speed)}
    assert len(found) == 9
    phone = found[PHONE, "dynamic network"]
    assert phone["deployed_speedup"].sort == pytest.approx(0.8)
    assert [phone[key].text for key in ("load_ms", "first_run_ms", "download_ms")] == ["20.0", "9.00", "4.00"]
    assert phone["over_native"].sort == pytest.approx(3 * 1.2 / 0.8)  # the same file, three times as slow a device
    assert found[HERE, "dynamic network"]["over_native"].text == "–"
    assert found[PHONE, "ResNet-38"]["deployed_speedup"].text == "1 (reference)"
    assert found[LOST, "ResNet-38"]["latency_item_ms"].note == "it vanished"


def test_what_deciding_takes_has_an_interval_or_a_reason(report: Report) -> None:
    found = {(r["on_device"].text, r["network_there"].text): r for r in rows(tables(report, "on-devices")[0])}
    here = found[HERE, "dynamic network"]["deciding_there"]
    assert isinstance(here.sort, float) and here.sort == pytest.approx(0.25, abs=0.03)
    assert re.fullmatch(r"\d+ % \([\d.]+ to [\d.]+\)", here.text)
    phone = found[PHONE, "dynamic network"]["deciding_there"]
    assert (phone.text, phone.note) == ("n/a", "its graph takes no decisions")
    assert found[HERE, "ResNet-38"]["deciding_there"].text == "–"
    known = [r for r in rows(tables(report, "on-devices")[1]) if r["on_device"].text == HERE]
    assert known and all(r["known_ms"].sort < r["path_ms"].sort for r in known)  # type: ignore[operator]


def test_load_that_lasts_is_a_figure_and_a_table(report: Report) -> None:
    (table,) = (t for t in tables(report, "on-devices") if t.key.startswith("device load"))
    found = {r["network_there"].text: r for r in rows(table)}
    assert set(found) == {"dynamic network", "ResNet-38"}
    assert found["dynamic network"]["sustained_slower"].sort == pytest.approx(1.5)
    assert found["dynamic network"]["sustained_c"].sort == 71.0
    assert found["ResNet-38"]["sustained_c"].note == "no temperature can be read there"
    (group,) = (g for g in report.figures if g.key == "sustained")
    (panel,) = group.panels
    assert "1.50 ms (71 C) at 180 s" in panel.alt
    assert isinstance(panel.drawing, Sustained)
    with theme():
        image = draw(panel.drawing)
        bare = draw(Sustained("phone", [Load("a", [1.0, 2.0], [3.0, 3.1], [None, None])]))
    assert "minutes under load" in image and "ms per item" in image and "dynamic network" in image
    assert "seconds under load" in bare


def test_times_by_path_grow_with_the_path_and_stand_beside_the_static_network(report: Report) -> None:
    paths = tables(report, "on-devices")[1]
    mine = [r for r in rows(paths) if r["on_device"].text == PHONE]
    times = [r["path_ms"].sort for r in mine]
    assert len(times) > 2 and times == sorted(times)  # type: ignore[type-var]
    assert sum(r["inputs_of_path"].sort for r in mine) == made_up.ITEMS  # type: ignore[misc]
    static = [r["static_ms"].sort for r in mine]
    assert max(static) / min(static) < 1.1  # type: ignore[type-var, operator]


def test_what_the_agents_say_is_there(report: Report) -> None:
    said = [(r["on_device"].text, r["note_of_agent"].text) for r in rows(tables(report, "on-devices")[3])]
    assert (PHONE, "clock: steps of 5.0 us") in said and (LOST, "it vanished") in said


def test_the_verdict_is_about_the_first_device_that_measured_and_names_the_others(report: Report) -> None:
    (verdict,) = report.verdicts
    assert verdict.figure == "1.20x"
    assert "on this-machine (Made-up CPU)" in verdict.sentence
    assert verdict.paragraphs[-1] == (
        f"Elsewhere, deployed against deployed: on {LOST} nothing was timed: it vanished; on {PHONE} 0.80x (0.78 to "
        "0.82) at batch 1."
    )


def test_no_comparison_mixes_devices(run: Run, report: Report) -> None:
    fast_first = [*on(PHONE, 0.8), *on(HERE, 1.2)]
    for cells, judged in ((run.cells, HERE), (fast_first, PHONE)):
        found = contest(made_up.SKIPPED, cells)
        assert found is not None
        assert {t.cell.device for t in found.deployed.values()} == {judged}
        (summary,) = summarise([made_up.info()], cells)
        assert {s.best.cell.device for s in summary.at.values() if s.best is not None} == {judged}
    used = {(r["device"].text, r["use"].text) for r in rows(tables(report, "deploy")[0])}
    assert used == {(HERE, "dynamic network"), (PHONE, "ResNet-38")}  # each by its own times


def test_an_overview_says_which_device_it_is_about(tmp_path: Path) -> None:
    infos = [made_up.info(), made_up.info(made_up.CASCADED)]
    cells = [c for i in infos for d, s in ((HERE, 1.2), (PHONE, 0.8)) for c in on(d, s, workload=i.name)]
    path = made_up.write_run(tmp_path / "run", made_up.manifest(*infos, devices=DEVICES), cells)
    overview = build_overview(Run.open(path), {i.name: i.name for i in infos})
    assert f"All of this is about {HERE}; the other devices are under On devices." in overview.sentences
    (table,) = (b.table for s in overview.sections if s.key == "devices" for b in s.blocks)
    assert table is not None
    assert [(r["workload"].text, r["on_device"].text) for r in rows(table)] == [
        (i.title, device) for i in infos for device in (HERE, PHONE)
    ]


def test_a_run_without_devices_has_no_such_section(tmp_path: Path) -> None:
    path = made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), made_up.deployed(1, 1.2))
    assert all(s.key != "on-devices" for s in build(Run.open(path)).sections)
