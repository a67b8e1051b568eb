"""What a report says follows from the cells, and what is missing is said with its reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dynbench.analysis.verdict import verdict
from dynbench.report.content import Report, build
from dynbench.report.drawings import Absent, Paths, Speedups, Work
from dynbench.report.tables import Section, Table
from dynbench.report.values import Value
from dynbench.store.run import Run
from dynbench.store.schema import OWN_MODEL, Accuracy, Cell, Decisions, DeclaredCost, Flops, Manifest, Sitting, Warning_
from dynbench.unavailable import Unavailable
from tests.report import made_up


def reported(tmp_path: Path, cells: list[Cell], **changes: Any) -> Report:
    told = made_up.manifest(*changes.pop("infos", [made_up.info()]), **changes)
    return build(Run.open(made_up.write_run(tmp_path / "run", told, cells)))


def section(report: Report, key: str) -> Section:
    return next(s for s in report.sections if s.key == key)


def tables(report: Report, key: str) -> list[Table]:
    return [b.table for b in section(report, key).blocks if b.table is not None]


def text(report: Report, key: str) -> str:
    blocks = section(report, key).blocks
    values = [v.text for t in tables(report, key) for row in t.rows for v in row]
    return "\n".join([*(p for b in blocks for p in [b.title or "", *b.text, b.code or ""]), *values])


def rows(table: Table) -> list[dict[str, Value]]:
    return [dict(zip((c.key for c in table.columns), row, strict=True)) for row in table.rows]


def row(table: Table, name: str, batch: int | None = None) -> dict[str, Value]:
    named = [r for r in rows(table) if next(iter(r.values())).text == name]
    return next(r for r in named if batch is None or r["batch"].sort == batch)


def panel(report: Report, group: str, title: str = "Made-up SkipNet-38") -> Any:
    figures = next(g for g in report.figures if g.key == group)
    return next(p for p in figures.panels if p.title == title).drawing


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_verdict_is_the_sentence_of_the_analysis_and_its_figure_comes_from_the_cells(
    report: Report, run_dir: Path
) -> None:
    run = Run.open(run_dir)
    first = report.verdicts[0]
    assert first.sentence == verdict(made_up.info(), run.cells, "this CPU (Made-up CPU, 1 thread)")
    best = next(
        c for c in run.cells if c.arm.name == "compaction" and c.batch_size == 32 and c.decisions.label == "learned"
    )
    assert first.figure == f"{best.speedups[0].value:.2f}x" == "1.21x"
    assert first.detail == "compaction, batch 32, 95 % CI 1.17 to 1.25"
    assert first.outcome == "faster"


def test_every_headline_figure_is_the_one_its_sentence_speaks_of(report: Report) -> None:
    for v in report.verdicts:
        assert v.figure is not None
        assert v.figure in v.sentence


def test_a_faster_arm_that_is_certain_comes_before_a_larger_one_that_is_not(tmp_path: Path) -> None:
    wide = made_up.speedup(1.5).model_copy(update={"low": 0.8})
    cells = [
        made_up.cell("compaction", 8, 1.1),
        made_up.cell("masking", 8, 1.5, speedups=[wide]),
        made_up.cell("ResNet-38", 8, None, kind="baseline", primary=True),
    ]
    found = reported(tmp_path, cells).verdicts[0]
    assert found.detail.startswith("compaction")
    assert found.figure == "1.10x"
    assert found.figure in found.sentence


@pytest.mark.parametrize(("speed", "call"), [(0.8, "slower"), (1.0, "not told apart from it"), (1.2, "faster")])
def test_a_difference_within_its_interval_is_called_none(tmp_path: Path, speed: float, call: str) -> None:
    assert reported(tmp_path, [made_up.cell("masking", 8, speed)]).verdicts[0].outcome == call


def test_untrained_weights_and_made_up_decisions_are_said_on_the_first_screen(tmp_path: Path) -> None:
    untrained = reported(tmp_path / "a", made_up.group(8), infos=[made_up.info(weights=None)])
    assert "Untrained weights" in (untrained.verdicts[0].caution or "")
    own = made_up.info(weights=None).model_copy(update={"provenance": OWN_MODEL})  # its function may load weights
    unknown = reported(tmp_path / "own", made_up.group(8), infos=[own]).verdicts[0].caution
    assert unknown is not None and unknown.startswith("No file of weights: unless the model's function loads some, ")
    published = Decisions(source="published", label="published", keep_rate=0.5, provenance="table 3")
    made = reported(tmp_path / "b", [made_up.cell("masking", 8, 0.9, decisions=published)])
    assert "made up" in (made.verdicts[0].caution or "")
    assert "table 3" in text(made, "provenance")
    assert reported(tmp_path / "c", made_up.group(8)).verdicts[0].caution is None


def test_the_first_screen_says_what_was_run_on_what(report: Report) -> None:
    facts = dict(report.facts)
    assert facts["machine"] == "Made-up CPU, 2 cores, 8.00 GB memory"
    assert facts["measured on"] == "cpu, 1 thread, float32, eager and onnxruntime"
    assert facts["batch sizes"] == "1, 8, 32"
    assert facts["took"] == "3 min 20 s, of which 2 min 31 s inside timed samples"
    assert report.verdicts[0].inputs == "2000 made-up scenes of 32 x 32"


def test_what_a_run_was_resumed_with_is_said(tmp_path: Path) -> None:
    same = Sitting(started="2026-01-02T10:00:00+00:00", dynbench_version="0.1.0", git={"commit": "0123456789abcdef"})
    other = Sitting(started="2026-01-03T10:00:00+00:00", dynbench_version="0.2.0", git={"commit": "fedcba9876543210"})
    found = reported(tmp_path, made_up.group(8), resumed=[same, other])
    said = "2026-01-02 10:00 UTC; 2026-01-03 10:00 UTC with dynbench 0.2.0, commit fedcba9876"
    assert dict(found.facts)["resumed"] == said
    assert "A part was measured later, with fedcba9876543210." in text(found, "reproduce")


def test_what_is_declared_stands_apart_from_what_was_measured(tmp_path: Path) -> None:
    asked = DeclaredCost(decisions="learned", what="radiologist", share=0.25, latency_s=8, cost=0.6, unit="EUR")
    report = reported(tmp_path / "a", made_up.group(8), infos=[made_up.info(declared=[asked])])
    found = rows(tables(report, "declared")[0])[0]
    texts = {key: value.text for key, value in found.items()}
    assert texts["asked"] == "radiologist" and texts["share"] == "25.0" and texts["query_cost"] == "0.6 EUR"
    assert texts["expected_s"] == "2.00" and texts["expected_cost"] == "0.15 EUR"
    assert texts["machine_ms"] == row(tables(report, "results")[0], "compaction")["latency_item_ms"].text
    assert "25 % of the items end at a radiologist" in report.verdicts[0].sentence
    assert "not measured" in report.verdicts[0].sentence
    without = reported(tmp_path / "b", made_up.group(8))
    assert all(s.key != "declared" for s in without.sections)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_speed_up_stands_with_its_interval_ideal_and_efficiency(report: Report) -> None:
    found = row(tables(report, "results")[0], "compaction", 32)
    assert found["speedup"].text == "1.21x (1.17 to 1.25)"
    assert found["ideal_speedup"].text == "1.42x"
    assert found["efficiency_speedup_over_ideal"].text == "0.85"
    assert found["latency_item_ms"].text == "4.13"


def test_the_primary_baseline_is_the_reference_and_others_have_a_speed_up(report: Report) -> None:
    table = tables(report, "results")[0]
    assert row(table, "ResNet-38", 8)["speedup"].text == "1 (reference)"
    assert row(table, "ResNet-38", 8)["role"].text == "primary baseline"
    assert row(table, "ResNet-20", 8)["speedup"].text == "1.40x (1.36 to 1.44)"


def test_a_speed_up_against_another_baseline_has_its_own_column(tmp_path: Path) -> None:
    both = [made_up.speedup(1.2), made_up.speedup(0.7, "ResNet-20", primary=False)]
    found = rows(tables(reported(tmp_path, [made_up.cell("compaction", 8, 1.2, speedups=both)]), "results")[0])[0]
    assert found["against:ResNet-20"].text == "0.70x (0.68 to 0.72)"


def test_a_refused_strategy_is_shown_with_its_reason_and_never_replaced(report: Report) -> None:
    table = tables(report, "results")[0]
    assert row(table, "cascading", 8)["speedup"].text == "n/a"
    assert "cascading refused: this model has none that halts" in table.notes
    merged = row(tables(report, "refused")[0], "cascading")
    assert merged["batches"].text == "1, 8, 32"
    assert merged["reason"].text == "this model has none that halts"


def test_a_failed_cell_reaches_the_page_with_its_reason(tmp_path: Path) -> None:
    failed = made_up.refused("masking", 8, "out of memory", status="failed")
    found = reported(tmp_path, [made_up.cell("compaction", 8, 1.2), failed])
    assert "out of memory" in text(found, "refused")
    assert found.status == "1 of 2 cells failed; see Refused and failed."


def test_what_is_the_same_in_every_row_is_named_once_with_its_reason(report: Report) -> None:
    table = next(t for t in tables(report, "work") if t.key.startswith("work"))
    assert "energy_item_j" not in [c.key for c in table.columns]
    assert any(c.startswith("energy, idle share: n/a (this made-up machine") for c in table.constants)


def test_a_warning_that_one_result_has_is_not_named_for_all(report: Report) -> None:
    table = tables(report, "results")[0]
    assert row(table, "compaction, live decisions", 32)["warnings"].text == "DB-PREC-01"
    assert row(table, "compaction", 32)["warnings"].text == "–"


def test_a_footnote_carries_the_reason_of_its_own_cell(report: Report) -> None:
    table = next(t for t in tables(report, "work") if t.key.startswith("work"))
    value = row(table, "compaction", 1)["peak_memory_bytes"]
    assert value.text == "n/a"
    number = table.note_number(value)
    assert number is not None
    assert table.notes[number - 1] == "only at the largest batch"
    assert row(table, "compaction", 32)["peak_memory_bytes"].text == "31.5"


def test_accuracy_names_the_baseline_and_the_static_network_of_equal_mean_flops(report: Report) -> None:
    table = tables(report, "accuracy")[0]
    dynamic, primary, equal = (row(table, n) for n in ("dynamic network", "ResNet-38", "ResNet-20"))
    assert dynamic["accuracy"].text == "90.1 % ± 1.9"
    assert dynamic["speedup"].text == "1.21x (1.17 to 1.25)"
    assert dynamic["speedup"].note == "compaction at batch 32"
    assert primary["place"].text == "primary baseline"
    assert equal["place"].text == "static network of equal mean FLOPs"
    assert equal["cost"].text == "80.1"


def test_a_network_of_far_fewer_flops_is_not_called_equal(tmp_path: Path) -> None:
    small = Flops(
        dense=made_up.DENSE, required_region=1e6, required_total=1e6, executed=made_up.DENSE / 3, accounted=1e6
    )
    cells = [
        made_up.cell("compaction", 8, 1.2),
        made_up.cell("ResNet-38", 8, None, kind="baseline", primary=True),
        made_up.cell("ResNet-20", 8, 2.0, kind="baseline", flops=small),
    ]
    found = reported(tmp_path, cells)
    assert row(tables(found, "accuracy")[0], "ResNet-20")["place"].text == "baseline"
    assert "no static network within 20 %" in text(found, "accuracy")


def test_a_metric_that_is_no_share_is_not_turned_into_percent(tmp_path: Path) -> None:
    bits = Accuracy(value=2.3456, metric="bits per byte", higher_is_better=False, items=200)
    found = reported(tmp_path, made_up.group(8), infos=[made_up.info(accuracies={"dynamic": bits})])
    value = rows(tables(found, "accuracy")[0])[0]["accuracy"]
    assert (value.text, value.note) == ("2.346", "bits per byte: lower is better")


def test_claims_stand_beside_what_was_accounted_required_executed_and_timed(report: Report) -> None:
    first, second = rows(tables(report, "claims")[0])
    assert first["claim"].text == "computation: 70.272 % of blocks"
    assert (first["how"].text, first["status"].text) == ("counted", "verified")
    assert (second["how"].text, second["status"].text) == ("timed", "recalled")
    assert second["where"].text == "figure 2 (batch 32, made-up GPU)"
    for claim in (first, second):
        assert claim["accounted_saved"].text == "70.0"
        assert claim["required_saved"].text == claim["executed_saved"].text == "70.6"
        assert claim["measured"].text == "1.21x (1.17 to 1.25)"
    assert "because gather and scatter take 8 % of the time" in text(report, "claims")
    assert "(blocks run + 1) / blocks" in text(report, "claims")


def test_a_paper_that_counts_less_than_is_required_is_said_to(tmp_path: Path) -> None:
    flops = Flops(
        dense=100.0, required_region=60.0, required_total=80.0, executed=80.0, accounted=60.0, accounted_rule="bodies"
    )
    found = reported(tmp_path, [made_up.cell("compaction", 8, 1.2, flops=flops)])
    assert "The paper's way of counting (bodies) gives 25 % less than bodies and gates require." in text(
        found, "claims"
    )


def test_the_losses_of_a_cell_multiply_to_ideal_over_speed_up(tmp_path: Path) -> None:
    found = rows(tables(reported(tmp_path, [made_up.cell("compaction", 8, 1.1)]), "gap")[0])[0]
    losses = [v.sort for k, v in found.items() if k.startswith("lost_")]
    assert len(losses) == 5
    assert math.prod(float(n) for n in losses if n is not None) == pytest.approx(found["ideal_speedup"].sort / 1.1)
    assert "gather and scatter take 8 % of the time" in found["causes"].text


def test_the_sweep_says_where_each_strategy_breaks_even(report: Report) -> None:
    said = text(report, "sweep")
    assert "compaction breaks even with ResNet-38 at a keep-rate of 80 %." in said
    assert "masking is slower than ResNet-38 already at the lowest keep-rate" in said


def test_every_column_that_is_shown_is_explained(report: Report) -> None:
    explained = {r["header"].text for r in rows(tables(report, "legend")[0])}
    shown = [b.table for s in report.sections if s.key != "legend" for b in s.blocks if b.table]
    filled = {c.header for table in shown for c in table.filled if c.definition}
    assert filled == explained
    assert {"speed-up", "ideal", "energy", "bytes touched"} <= explained


# --- doubts and gaps -------------------------------------------------------------------------------------------------


def test_warnings_have_their_id_place_and_remedy(report: Report) -> None:
    found = row(tables(report, "warnings")[0], "DB-PREC-01")
    assert found["concerns"].text == "Made-up SkipNet-38, learned, batch 32, compaction, live decisions"
    assert found["remedy"].text == "more time"
    assert row(tables(report, "warnings")[0], "DB-LOAD-01")["concerns"].text == "the whole run"


def test_many_warnings_of_one_kind_are_one_row_and_each_can_be_unfolded(tmp_path: Path) -> None:
    def noisy(i: int) -> list[Warning_]:
        return [Warning_(id="DB-PREC-01", text=f"interval of +-{i} %", remedy="more time")]

    cells = [made_up.cell("compaction", 2**i, 1.2, warnings=noisy(i)) for i in range(10)]
    short, every = tables(reported(tmp_path, cells), "warnings")
    assert [r["id"].text for r in rows(short)] == ["DB-LOAD-01", "DB-PREC-01"]
    assert rows(short)[1]["concerns"].text.startswith("10 results")
    assert len(every.rows) == 11


def test_a_file_that_was_cut_off_is_a_warning(tmp_path: Path) -> None:
    path = made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), made_up.group(8))
    with (path / "cells.jsonl").open("a") as file:
        file.write('{"cell_id": "cut o')
    assert "DB-STORE-01" in text(build(Run.open(path)), "warnings")


def test_what_was_not_measured_is_listed_with_its_reason(report: Report) -> None:
    found = {r["what"].text: r["why"].text for r in rows(tables(report, "not-measured")[0])}
    assert found["workload gone"] == "its weights file is not there"
    assert found["energy"] == "this made-up machine has no energy counter"
    assert found["peak memory (34 of 56 cells)"] == "only at the largest batch"
    assert "same length" in found["figure: Latency by path: Made-up experts"]
    assert "queueing" in found


def test_batch_sizes_that_were_asked_for_and_not_reached_are_listed(tmp_path: Path) -> None:
    found = reported(tmp_path, made_up.group(1), status="interrupted", finished=None)
    pairs = {r["what"].text: r["why"].text for r in rows(tables(found, "not-measured")[0])}
    assert pairs["Made-up SkipNet-38 at batch 8, 32"] == "the run was interrupted before"
    assert found.status is not None and found.status.startswith("This run was interrupted.")


def test_a_reconstruction_from_memory_is_labelled(report: Report) -> None:
    assert "[recalled, not checked] [reconstructed] reconstruction from memory" in text(report, "provenance")
    assert "[" not in row(tables(report, "provenance")[2], "made after")["value"].text  # the cascade is from its paper


def test_reproducing_needs_the_command_quoted_the_versions_and_the_hashes(report: Report) -> None:
    said = text(report, "reproduce")
    assert "dynbench run 'a b.toml' --device cpu" in said
    assert "git checkout 0123456789abcdef" in said
    assert "torch==2.13.0" in said
    assert "not committed" in said
    hashes = text(report, "provenance")
    assert all(h in hashes for h in ("feedfacefeedface", "0011223344556677", "cafecafecafecafe"))


def test_the_environment_is_flat_and_its_sizes_are_readable(report: Report) -> None:
    hardware = {r["fact"].text: r["value"].text for r in rows(tables(report, "environment")[0])}
    assert hardware == {"name": "Made-up CPU", "cores usable": "2", "memory": "8.00 GB", "caches: L2": "1.05 MB"}


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_figure_of_speed_up_holds_the_values_and_intervals_of_the_cells(report: Report) -> None:
    drawing = panel(report, "speedup-by-batch")
    assert isinstance(drawing, Speedups)
    line = next(line for line in drawing.lines if line.name == "compaction")
    assert line.x == [1, 8, 32]
    assert line.y == [1.28, 1.09, 1.21]
    assert line.low == pytest.approx([1.28 * 0.97, 1.09 * 0.97, 1.21 * 0.97])
    assert [x for x, _ in drawing.ideal] == [1, 8, 32]
    assert next(line for line in drawing.lines if line.name == "ResNet-20").static
    assert "ResNet-38" not in [line.name for line in drawing.lines]


def test_the_break_even_of_the_sweep_is_marked_and_the_learned_rate_shown(report: Report) -> None:
    drawing = panel(report, "speedup-by-keep-rate")
    assert isinstance(drawing, Speedups)
    assert drawing.break_even == pytest.approx({"compaction": 0.8})
    assert drawing.learned == 0.69


def test_the_figure_of_work_has_dense_required_executed_and_accounted(report: Report) -> None:
    drawing = panel(report, "flops")
    assert isinstance(drawing, Work)
    amounts = {b.label: b.flops for b in drawing.bars}
    assert amounts["dense: ResNet-38"] == made_up.DENSE
    assert amounts["executed: masking"] == made_up.DENSE + 1e5
    assert amounts["required: with gates"] == amounts["required: bodies"] + 1e5
    assert amounts["accounted in the paper"] == pytest.approx(0.7 * made_up.DENSE)


def test_work_that_could_not_be_counted_is_named_instead_of_drawn(tmp_path: Path) -> None:
    unknown = Unavailable(unavailable="the model file does not say")
    flops = Flops(dense=100.0, required_region=60.0, required_total=80.0, executed=80.0, accounted=unknown)
    drawing = panel(reported(tmp_path, [made_up.cell("compaction", 8, 1.2, flops=flops)]), "flops")
    assert isinstance(drawing, Work)
    assert drawing.missing == ["accounted in the paper: n/a (the model file does not say)"]


def test_latency_is_split_by_path_with_the_items_that_went_each_way(report: Report) -> None:
    drawing = panel(report, "latency-by-path")
    assert isinstance(drawing, Paths)
    assert drawing.counted_in == "bodies run of 17"
    assert drawing.paths == ["9", "10", "11", "12", "13", "14"]
    assert sum(drawing.items) == made_up.ITEMS
    assert drawing.items[0] == made_up.PATHS.count(9.0)
    medians = {a.name: [q[2] for q in a.quantiles] for a in drawing.arms}
    assert medians["compaction"] == sorted(medians["compaction"])
    assert medians["compaction"][-1] > 1.4 * medians["compaction"][0]
    assert medians["masking"][-1] == pytest.approx(medians["masking"][0], rel=0.05)


def test_many_paths_are_put_into_few_bins_that_hold_every_item(tmp_path: Path) -> None:
    depths = [float(i) for i in range(made_up.ITEMS)]
    drawing = panel(reported(tmp_path, [made_up.cell("masking", 1, 0.9, batch_paths=depths)]), "latency-by-path")
    assert isinstance(drawing, Paths)
    assert len(drawing.paths) <= 10
    assert sum(drawing.items) == made_up.ITEMS
    assert drawing.paths[0].startswith("0–") and drawing.paths[-1].endswith("–63")


def _partial(name: str) -> tuple[list[Cell], dict[str, Any]]:
    no_flops = {"flops": None, "ideal": None, "efficiency": None, "phases": None, "batch_paths": []}
    bare: dict[str, Any] = {key: {} for key in ("hardware", "software", "git", "environment", "spec")}
    bare |= {"command": [], "command_s": None, "started": "some day"}
    return {
        "nothing at all": ([], {"infos": []}),
        "no cells": ([], {"status": "running"}),
        "only refused": ([made_up.refused("cascading", 8, "no Loop")], {}),
        "only failed": ([made_up.refused("masking", 8, "killed", status="failed")], {}),
        "only interrupted": ([made_up.refused("masking", 1, "stopped", status="interrupted")], {}),
        "one batch size": (made_up.group(8), {}),
        "no primary baseline": ([made_up.cell("masking", 8, None)], {}),
        "only the sweep": (made_up.sweep(), {}),
        "no diagnosis": ([made_up.cell("masking", b, 0.9, **no_flops) for b in (1, 8)], {}),
        "no accuracy": (made_up.group(8), {"infos": [made_up.info(accuracies={}, claims=[], card={})]}),
        "bare manifest": (made_up.group(1), bare),
    }[name]


PARTIAL = [
    "nothing at all",
    "no cells",
    "only refused",
    "only failed",
    "only interrupted",
    "one batch size",
    "no primary baseline",
    "only the sweep",
    "no diagnosis",
    "no accuracy",
    "bare manifest",
]


@pytest.mark.parametrize("name", PARTIAL)
def test_a_partial_run_is_reported_and_every_missing_figure_says_why(tmp_path: Path, name: str) -> None:
    cells, changes = _partial(name)
    found = reported(tmp_path, cells, **changes)
    assert [s.key for s in found.sections][-1] == "legend"
    for s in found.sections:
        assert s.blocks, s.key
    assert len(found.figures) == 6
    for g in found.figures:
        assert len(g.panels) >= len(found.verdicts), g.key
    for p in (p for g in found.figures for p in g.panels):
        if isinstance(p.drawing, Absent):
            assert p.drawing.reason
        else:
            assert p.alt


def test_reasons_of_refusal_explain_a_missing_figure(tmp_path: Path) -> None:
    found = reported(tmp_path, [made_up.refused("cascading", 8, "no Loop")])
    assert panel(found, "speedup-by-batch") == Absent("no speed-up was measured (cascading refused: no Loop)")
    assert found.verdicts[0].figure is None
    assert "no Loop" in found.verdicts[0].sentence


def test_the_raw_samples_may_be_gone_or_corrupt(tmp_path: Path) -> None:
    path = made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), made_up.group(1))
    file = next((path / "samples").iterdir())
    file.write_bytes(b"not parquet")
    assert "corrupt" in panel(build(Run.open(path)), "latency-by-path").reason
    file.unlink()
    assert panel(build(Run.open(path)), "latency-by-path") == Absent("no single times are stored for batch 1")


def test_settings_that_differ_are_kept_apart(tmp_path: Path) -> None:
    cells = [made_up.cell("masking", 8, 0.9), made_up.cell("masking", 8, 0.7, dtype="bfloat16", cell_id="other")]
    found = reported(tmp_path, cells)
    assert [b.title for b in section(found, "results").blocks] == [
        "Made-up SkipNet-38 (float32)",
        "Made-up SkipNet-38 (bfloat16)",
    ]
    assert len({p.key for g in found.figures for p in g.panels}) == 2 * 5 + 1


def test_a_report_says_which_device_it_is_about() -> None:
    from dynbench.report.selection import device_phrase

    told: Manifest = made_up.manifest(hardware={"name": "NVIDIA H200"})
    gpu = made_up.cell("masking", 8, 0.9, device="cuda:0")
    assert device_phrase(told, [gpu]) == "this GPU (NVIDIA H200)"
    assert device_phrase(made_up.manifest(hardware={}), [made_up.cell("masking", 8, 1.0, threads=2)]) == (
        "this CPU (2 threads)"
    )
