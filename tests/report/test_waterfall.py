"""The waterfall in a report: figure, table and sentence, from made-up cells."""

from __future__ import annotations

from pathlib import Path

from dynbench.report.content import Report, build
from dynbench.report.drawings import Absent
from dynbench.report.figures import draw
from dynbench.report.layout import theme
from dynbench.report.waterfall import ATTACH, WITHOUT_CONTROLS, Fall
from dynbench.store.run import Run
from dynbench.store.schema import Cell, Factor, Warning_, Waterfall
from tests.report import made_up

FACTORS = {"surplus": 1.0, "fewer_items": 1.25, "moving": 1.1, "deciding": 0.98, "waiting": 1.0, "rest": 1.01}


def explained(cell: Cell, **changes: object) -> Cell:
    factors = [
        Factor(value=v, low=v / 1.01, high=v * 1.01, name=name, how="two arms", share=0.1, profile_share=0.3)  # type: ignore[arg-type]
        for name, v in FACTORS.items()
    ]
    lost = 1.0
    for f in factors:
        lost *= f.value
    whole = Waterfall(baseline="ResNet-38", ideal=1.6, speedup=1.6 / lost, factors=factors)
    return cell.model_copy(update={"waterfall": whole, **changes})


def reported(tmp_path: Path, cells: list[Cell]) -> Report:
    return build(Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), cells)))


def drawings(found: Report) -> list[object]:
    return [p.drawing for g in found.figures if g.key == "waterfall" for p in g.panels]


def test_the_steps_lead_from_the_ideal_to_the_measured_speedup(tmp_path: Path) -> None:
    found = reported(tmp_path, [explained(made_up.cell("compaction", 8, 1.1))])
    (fall,) = drawings(found)
    assert isinstance(fall, Fall)
    assert fall.steps[0].start == 1.6 and abs(fall.steps[-1].end - fall.speedup) < 1e-12
    assert all(a.end == b.start for a, b in zip(fall.steps, fall.steps[1:], strict=False))
    assert all(s.low <= s.end <= s.high for s in fall.steps)
    with theme():
        code = draw(fall)
    assert all(text in code for text in ("ideal", "fewer items per call", "measured", "1.60x"))


def test_the_table_has_every_factor_and_how_it_was_measured(tmp_path: Path) -> None:
    found = reported(tmp_path, [explained(made_up.cell("compaction", 8, 1.1))])
    block, _ = next(s for s in found.sections if s.key == "why").blocks
    assert block.table is not None and len(block.table.rows) == len(FACTORS)
    texts = [[v.text for v in row] for row in block.table.rows]
    assert "1.25x (1.24 to 1.26)" in texts[1]
    assert block.text[0].endswith("the largest loss is fewer items per call: 1.25x (95 % CI 1.24 to 1.26).")


def test_a_profile_that_disagrees_is_shown_beside(tmp_path: Path) -> None:
    doubt = Warning_(id="DB-WHY-01", text="moving items takes 8 % by controls, 30 % by the profile", remedy="none")
    found = reported(tmp_path, [explained(made_up.cell("compaction", 8, 1.1), warnings=[doubt])])
    block, _ = next(s for s in found.sections if s.key == "why").blocks
    assert block.text[-1] == "DB-WHY-01: moving items takes 8 % by controls, 30 % by the profile."


def test_controls_are_in_no_other_table(tmp_path: Path) -> None:
    cell = made_up.cell("compaction", 8, 1.1)
    arm = cell.arm.model_copy(update={"kind": "control", "without": "moving"})
    control = cell.model_copy(update={"arm": arm, "cell_id": "control", "speedups": []})
    found = reported(tmp_path, [explained(cell), control])
    shown = [v.text for s in found.sections for b in s.blocks if b.table for row in b.table.rows for v in row]
    assert "compaction" in shown and not any("nothing moved" in text for text in shown)


def test_a_run_without_controls_says_so_in_one_sentence(tmp_path: Path) -> None:
    found = reported(tmp_path, [made_up.cell("compaction", 8, 1.1)])
    assert drawings(found) == [Absent(WITHOUT_CONTROLS)]
    (block,) = next(s for s in found.sections if s.key == "why").blocks
    assert block.text == [WITHOUT_CONTROLS] and block.table is None


def test_the_same_is_shown_in_joules_where_they_were_metered(tmp_path: Path) -> None:
    cell = explained(made_up.cell("compaction", 8, 1.1))
    assert cell.waterfall is not None
    joules = cell.waterfall.model_copy(update={"speedup": cell.waterfall.speedup * 0.9, "baseline": "ResNet-38"})
    found = reported(tmp_path, [cell.model_copy(update={"energy_waterfall": joules})])
    in_time, in_joules = drawings(found)
    assert isinstance(in_time, Fall) and isinstance(in_joules, Fall)
    assert (in_time.of, in_joules.of, in_joules.speedup) == ("time", "energy", joules.speedup)
    with theme():
        assert "saving of energy against ResNet-38" in draw(in_joules)
    blocks = next(s for s in found.sections if s.key == "why").blocks
    (block,) = (b for b in blocks if b.title == "In joules")
    assert block.table is not None and len(block.table.rows) == len(FACTORS)
    assert "in joules; by controls the largest loss is fewer items per call" in block.text[0]
    assert not any(ATTACH in text for b in blocks for text in b.text)


def test_without_a_counter_the_report_says_what_to_attach(tmp_path: Path) -> None:
    found = reported(tmp_path, [explained(made_up.cell("compaction", 8, 1.1))])
    blocks = next(s for s in found.sections if s.key == "why").blocks
    (text,) = (t for b in blocks for t in b.text if ATTACH in t)
    assert text.startswith("The same in joules is not there: this made-up machine has no energy counter. ")
    assert not any(b.title == "In joules" for b in blocks)
