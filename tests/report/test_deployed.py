"""What a report says of networks in their fastest ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.report.columns import COLUMNS
from dynbench.report.content import Report, build
from dynbench.report.drawings import Absent, Paths, Speedups, Tradeoff
from dynbench.report.tables import Table
from dynbench.store.run import Run
from dynbench.store.schema import Accuracy
from tests.report import made_up
from tests.report.test_content import panel, reported, row, rows, section, tables, text
from tests.report.test_pages import assert_legible, drawn_as_svg

DYNAMIC = "compaction, live decisions, onnxruntime, graph"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """SkipNet at three batch sizes, as written and deployed."""
    cells = [c for b in (1, 8, 32) for c in (*made_up.group(b), *made_up.deployed(b, 1.5 if b > 1 else 0.9))]
    path = tmp_path_factory.mktemp("deployed") / "run"
    return build(Run.open(made_up.write_run(path, made_up.manifest(made_up.info()), cells)))


def test_the_large_figure_is_the_deployed_one_with_that_as_written_beside_it(deployed: Report) -> None:
    (found,) = deployed.verdicts
    assert (found.figure, found.outcome) == ("1.50x", "faster")
    assert found.detail == "deployed: compaction as one ONNX Runtime graph, batch 32, 95 % CI 1.46 to 1.54"
    assert found.written == "as written 1.21x: compaction, batch 32, 95 % CI 1.17 to 1.25"
    assert "Deployed against deployed" in found.sentence


def test_a_line_for_every_batch_size_says_what_to_use(deployed: Report) -> None:
    table = tables(deployed, "deploy")[0]
    assert [(r["batch"].text, r["use"].text, r["deployed_speedup"].text) for r in rows(table)] == [
        ("1", "ResNet-38", "1 (reference)"),
        ("8", "dynamic network", "1.50x (1.46 to 1.54)"),
        ("32", "dynamic network", "1.50x (1.46 to 1.54)"),
    ]
    last = rows(table)[-1]
    assert [last[key].text for key in ("strategy", "form", "engine", "control")] == [
        "compaction",
        "plain",
        "onnxruntime",
        "graph",
    ]
    assert last["latency_item_ms"].sort == pytest.approx(160 / 1.5 / made_up.ITEMS)


def test_every_way_that_was_tried_is_listed_with_its_ratio_or_reason(deployed: Report) -> None:
    table: Table = tables(deployed, "deploy")[1]
    found = [r for r in rows(table) if r["batch"].text == "32"]
    assert [(r["network"].text, r["engine"].text, r["control"].text, r["over_fastest"].text) for r in found][:3] == [
        ("dynamic network", "onnxruntime", "graph", "1.00x"),
        ("dynamic network", "eager", "host", "2.00x"),
        ("dynamic network", "onnxruntime", "host", "n/a"),
    ]
    assert len(found) == 9 and found[2]["over_fastest"].note == "not timed: a layer has no such operator"


def test_a_cell_has_the_speedups_of_what_it_is(deployed: Report) -> None:
    table = tables(deployed, "results")[0]
    fastest, written = row(table, DYNAMIC, 32), row(table, "compaction", 32)
    assert (fastest["deployed_speedup"].text, fastest["speedup"].text) == ("1.50x (1.46 to 1.54)", "–")
    assert (written["deployed_speedup"].text, written["speedup"].text) == ("–", "1.21x (1.17 to 1.25)")
    assert fastest["role"].text == "strategy, deployed"
    assert fastest["deployed against:ResNet-20"].text == "1.07x (1.04 to 1.10)"
    references = [(r["role"].text, r["speedup"].text, r["deployed_speedup"].text) for r in rows(table)]
    assert references.count(("primary baseline", "1 (reference)", "–")) == 3
    assert references.count(("primary baseline, deployed", "–", "1 (reference)")) == 3


def test_one_cell_may_be_both(tmp_path: Path) -> None:
    both = made_up.cell("compaction", 8, 1.2, deployed=True, deployed_speedups=[made_up.speedup(1.1)])
    base = made_up.cell("ResNet-38", 8, None, kind="baseline", primary=True, deployed=True)
    table = tables(reported(tmp_path, [both, base]), "results")[0]
    assert row(table, "compaction")["speedup"].text == "1.20x (1.16 to 1.24)"
    assert row(table, "compaction")["deployed_speedup"].text == "1.10x (1.07 to 1.13)"
    assert row(table, "ResNet-38")["speedup"].text == row(table, "ResNet-38")["deployed_speedup"].text


def test_accuracy_has_both_speedups_once_per_network(deployed: Report) -> None:
    (table,) = tables(deployed, "accuracy")
    assert [r["network"].text for r in rows(table)] == ["dynamic network", "ResNet-38", "ResNet-20"]
    assert row(table, "ResNet-20")["deployed_speedup"].text == row(table, "ResNet-20")["speedup"].text
    assert row(table, "dynamic network")["deployed_speedup"].note == f"{DYNAMIC} at batch 32"


def test_reading_the_report_explains_the_words(deployed: Report, tmp_path: Path) -> None:
    assert "As written: " in text(deployed, "legend") and "The tournament finds " in text(deployed, "legend")
    without = reported(tmp_path, made_up.group(8))
    assert "ournament" not in text(without, "legend") and all(s.key != "deploy" for s in without.sections)


def test_every_column_of_the_new_tables_is_explained(deployed: Report) -> None:
    for table in tables(deployed, "deploy"):
        for c in table.columns:
            assert COLUMNS[c.key].definition or c.key in ("workload", "device", "threads", "why")


# --- figures ---------------------------------------------------------------------------------------------------------


def test_the_lines_of_deployed_networks_come_first(deployed: Report) -> None:
    found = panel(deployed, "speedup-by-batch")
    assert isinstance(found, Speedups)
    names = [(line.name, line.deployed) for line in found.lines]
    assert names[:2] == [("compaction, deployed", True), ("ResNet-20, deployed", True)]
    assert ("compaction", False) in names and ("ResNet-20", False) in names
    assert not any(name.startswith("ResNet-38") for name, _ in names)
    assert found.lines[0].y == [0.9, 1.5, 1.5]
    assert_legible(drawn_as_svg(found))


def test_times_by_path_have_both_primary_baselines(deployed: Report) -> None:
    found = panel(deployed, "latency-by-path")
    assert isinstance(found, Paths)
    assert [name for name, _ in found.baselines] == ["ResNet-38", "ResNet-38, deployed"]
    assert found.arms[0].name == "compaction, deployed"
    assert_legible(drawn_as_svg(found))


def test_accuracy_against_time_at_both_ends_of_the_batch_sizes(deployed: Report) -> None:
    title = "Made-up SkipNet-38"
    for size in (1, 32):
        found = panel(deployed, "accuracy-by-time", f"{title}, batch {size}")
        assert isinstance(found, Tradeoff) and found.batch_size == size
        times = [p.item_ms for p in found.points]
        assert times == sorted(times)
        assert {p.network for p in found.points} == {"dynamic network", "ResNet-38", "ResNet-20"}
        for p in found.points:
            beaten = any(q.item_ms <= p.item_ms and q.accuracy >= p.accuracy and q != p for q in found.points)
            assert p.front != beaten
        assert_legible(drawn_as_svg(found))
    assert [(p.network, p.front) for p in found.points][:2] == [("dynamic network", True), ("ResNet-20", False)]


def bits(value: float) -> Accuracy:
    return Accuracy(value=value, metric="bits per byte", higher_is_better=False, items=100)


def test_lower_may_be_better(tmp_path: Path) -> None:
    told = made_up.info(accuracies={"dynamic": bits(2.3), "ResNet-38": bits(2.1), "ResNet-20": bits(2.4)})
    found = reported(tmp_path, [*made_up.group(8), *made_up.deployed(8, 1.2)], infos=[told])
    drawing = panel(found, "accuracy-by-time", "Made-up SkipNet-38, batch 8")
    assert isinstance(drawing, Tradeoff) and not drawing.higher_is_better
    assert [p.network for p in drawing.points if p.front] == ["ResNet-20", "dynamic network", "ResNet-38"]
    assert drawing.metric == "bits per byte"
    picture = drawn_as_svg(drawing)
    assert "lower is better" in picture.inline("")
    assert_legible(picture)


def test_accuracy_against_time_needs_two_networks_of_known_accuracy(tmp_path: Path) -> None:
    alone = made_up.info(accuracies={"dynamic": bits(2.3)})
    found = panel(reported(tmp_path / "a", made_up.group(8), infos=[alone]), "accuracy-by-time")
    assert found == Absent("accuracy is known of fewer than two networks")
    drawing = panel(reported(tmp_path / "b", made_up.sweep()), "accuracy-by-time")
    assert isinstance(drawing, Absent)


def test_equal_accuracies_can_be_drawn(tmp_path: Path) -> None:
    same = made_up.info(accuracies=dict.fromkeys(("dynamic", "ResNet-38", "ResNet-20"), bits(0.0)))
    found = reported(tmp_path, [*made_up.group(1), *made_up.deployed(1, 1.2)], infos=[same])
    drawing = panel(found, "accuracy-by-time", "Made-up SkipNet-38, batch 1")
    assert sum(p.front for p in drawing.points) == 1
    assert_legible(drawn_as_svg(drawing))


def test_a_failed_way_is_listed_and_nothing_is_put_in_its_place(tmp_path: Path) -> None:
    cells = made_up.group(8)
    failed = made_up.refused("compaction", 8, "wrong answer: differs", status="failed", engine="onnxruntime")
    cells.append(failed.model_copy(update={"deployed": True}))
    found = reported(tmp_path, cells)
    assert (
        "Deployed against deployed was not measured: compaction, onnxruntime failed (wrong"
        in found.verdicts[0].sentence
    )
    assert found.verdicts[0].figure == "1.09x" and found.verdicts[0].written is None
    assert section(found, "deploy").blocks[0].text[0].startswith("No network was measured in its fastest way")
