"""A quantity that is added in one place, by a user's file, is found wherever quantities are."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dynbench.analysis.compare import compare, exact_quantities
from dynbench.report.content import Report, build
from dynbench.report.tables import Table
from dynbench.store.export import export
from dynbench.store.quantities import numbers
from dynbench.store.quantity import Quantity, check_quantity, describe, evaluate
from dynbench.store.run import Run
from dynbench.store.schema import Cell
from tests.report import made_up

MINE = Quantity(
    key="padded_share",
    header="padding",
    unit="%",
    scale=0.01,
    definition="Share of the positions of a batch that hold no token.",
    is_not="Not wasted time.",
    exact=True,
    better="down",
    measure=lambda arm: 0.125 if arm == "compaction" else 1 / 0,
)


def measured(cell: Cell) -> Cell:
    """As the measuring process would leave it, if an arm were its name."""
    if cell.status != "ok":
        return cell
    return cell.model_copy(update={"own": {MINE.key: evaluate(MINE, cell, cell.arm.name)}})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    check_quantity(MINE, "my.py:MINE")
    about = made_up.manifest(made_up.info(quantities=[describe(MINE)]))
    return Run.open(made_up.write_run(tmp_path / "run", about, [measured(c) for c in made_up.group(8)]))


def table(report: Report, section: str) -> Table:
    found = next(s for s in report.sections if s.key == section)
    return next(b.table for b in found.blocks if b.table is not None)


def row(shown: Table, name: str) -> dict[str, str]:
    values = next(r for r in shown.rows if r[0].text == name)
    return {column.header: value.text for column, value in zip(shown.columns, values, strict=True)}


def test_it_is_a_column_of_the_report_with_its_unit_and_its_reasons(run: Run) -> None:
    shown = table(build(run), "work")
    assert "padding" in [c.header for c in shown.columns if c.unit == "%"]
    assert row(shown, "compaction")["padding"] == "12.5"
    assert row(shown, "masking")["padding"] == "n/a"
    assert "measure of padded_share raised ZeroDivisionError: division by zero" in shown.notes


def test_the_legend_explains_it(run: Run) -> None:
    said = row(table(build(run), "legend"), "padding")
    assert said["what it is"] == MINE.definition and said["what it is not"] == "Not wasted time."


def test_where_it_is_missing_is_listed(run: Run) -> None:
    said = row(table(build(run), "not-measured"), "padding (4 of 5 cells)")
    assert "raised ZeroDivisionError" in said["why"]


def test_it_is_exported(run: Run, tmp_path: Path) -> None:
    cells_csv, _, _, document = export(run, ["csv", "json"], tmp_path / "out")
    with cells_csv.open(encoding="utf-8", newline="") as file:
        found = {r["name"]: r for r in csv.DictReader(file) if r["status"] == "ok"}
    assert found["compaction"]["own_padded_share"] == "0.125"
    assert "ZeroDivisionError" in found["masking"]["own_padded_share_unavailable"]
    stored = json.loads(document.read_text(encoding="utf-8"))
    assert {"padded_share": 0.125} in [c["own"] for c in stored["cells"]]
    assert next(q for q in stored["quantities"] if q["key"] == "own_padded_share")["definition"] == MINE.definition


def test_it_is_compared_exactly_between_runs(run: Run) -> None:
    def other(share: float) -> Run:
        own = {MINE.key: share}
        cells = [c.model_copy(update={"own": own}) if c.arm.name == "compaction" else c for c in run.cells]
        return replace(run, cells=cells)

    assert all(not c.exact for c in compare(run, other(0.125)).changes)
    assert all(r.same for r in exact_quantities(run, other(0.125)))
    changed = {c.cell.arm.name: c.exact for c in compare(run, other(0.25)).changes}
    assert changed["compaction"] == ["padding: 0.125 -> 0.25"] and changed["dense"] == []
    (wrong,) = (r for r in exact_quantities(run, other(0.25)) if not r.same)
    assert (wrong.what.split(" of ")[0], wrong.before, wrong.after) == ("padding", "0.125", "0.25")


def test_a_history_stores_it(run: Run) -> None:
    stored = {c.arm.name: numbers(c) for c in run.cells if c.status == "ok"}
    assert stored["compaction"]["own_padded_share"] == 0.125
    assert "own_padded_share" not in stored["masking"]
