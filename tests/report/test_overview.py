"""The first page of a report on several workloads, and the page of each of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynbench.analysis.overview import summarise
from dynbench.paths import workload_files
from dynbench.report import write_report
from dynbench.report.drawings import Absent
from dynbench.report.overview import Overview, build_overview
from dynbench.report.overview_columns import AS_WRITTEN, BY_PROFILE
from dynbench.report.published import CLAIMS, counterparts
from dynbench.report.values import missing
from dynbench.store.run import Run
from dynbench.store.schema import Cell
from tests.report import made_up
from tests.report.test_pages import Page
from tests.report.test_waterfall import explained

NAMES = (made_up.SKIPPED, made_up.CASCADED, made_up.EXPERTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = made_up.whole_run(tmp_path_factory.mktemp("overview") / "run")
    assert [file.name for file in write_report(path)] == ["report.html", "report.md"]
    return path


@pytest.fixture(scope="module")
def overview(folder: Path) -> Overview:
    return build_overview(Run.open(folder), {name: name for name in NAMES})


def text_of(page: Path) -> str:
    return " ".join("".join(Page(page.read_text(encoding="utf-8")).text).split())


def test_every_workload_has_a_row_that_leads_to_its_page(folder: Path) -> None:
    for suffix, pattern in (("html", r'href="(workloads/[^"]+)"'), ("md", r"\]\((workloads/[^)]+)\)")):
        linked = re.findall(pattern, (folder / f"report.{suffix}").read_text(encoding="utf-8"))
        assert len(set(linked)) == len(NAMES)
        assert all((folder / page).is_file() for page in linked)


def test_the_page_of_a_workload_is_about_it_alone_and_leads_back(folder: Path) -> None:
    for name in NAMES:
        page = folder / "workloads" / f"{name.replace('_', '-')}.html"
        text = text_of(page)
        assert made_up.TITLES[name] in text
        assert not any(made_up.TITLES[other] in text for other in NAMES if other != name)
        assert 'href="../report.html"' in page.read_text(encoding="utf-8")


def test_figures_in_markdown_are_where_the_pages_look_for_them(folder: Path) -> None:
    linked: set[Path] = set()
    for page in (folder / "report.md", *(folder / "workloads").glob("*.md")):
        found = re.findall(r"!\[[^\]]*\]\(([^)]+\.svg)\)", page.read_text(encoding="utf-8"))
        linked |= {(page.parent / place).resolve() for place in found}
    assert linked == {file.resolve() for file in (folder / "figures").iterdir()}


def test_a_run_of_one_workload_is_one_page(tmp_path: Path) -> None:
    run = made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), made_up.group(8))
    write_report(run)
    assert not (run / "workloads").exists()


def test_the_sentences_count_what_the_table_says(overview: Overview) -> None:
    """Batch 1: the cascade (1.1x deployed), SkipNet and the experts (1.31x by per_sample); batch 32: SkipNet alone."""
    assert overview.sentences[0].startswith("At batch 1, of 3 dynamic networks 3 are measurably faster")
    assert overview.sentences[1].startswith("At batch 32, of 1 dynamic networks 1 are measurably faster")
    table = overview.table.table
    assert table is not None
    keys = [column.key for column in table.columns]
    rows = {row[0].text: dict(zip(keys, row, strict=True)) for row in table.rows}
    assert rows[made_up.TITLES[made_up.CASCADED]]["decision_kind"].text == "exits early"
    assert rows[made_up.TITLES[made_up.CASCADED]]["at:8"].text.startswith("1.10x")
    assert rows[made_up.TITLES[made_up.SKIPPED]]["at:32"].text.startswith("1.21x")
    assert rows[made_up.TITLES[made_up.EXPERTS]]["at:32"].text == "–"


def test_a_faster_and_as_accurate_static_network_is_named(tmp_path: Path) -> None:
    better = made_up.info().accuracies | {
        "ResNet-20": made_up.info().accuracies["ResNet-20"].model_copy(update={"value": 0.91})
    }
    infos = [made_up.info(accuracies=better), made_up.info(made_up.CASCADED)]
    cells = [*made_up.group(8), *made_up.deployed(8, 1.1), *made_up.group(8, workload=made_up.CASCADED)]
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(*infos), cells))
    table = build_overview(run, {i.name: i.name for i in infos}).table.table
    assert table is not None
    verdicts = {row[0].text: row[1].text for row in table.rows}
    assert verdicts[made_up.TITLES[made_up.SKIPPED]] == "faster; use ResNet-20"
    assert verdicts[made_up.TITLES[made_up.CASCADED]] == "faster"


def test_every_answer_has_sentences_and_its_tables_are_filled(overview: Overview) -> None:
    assert [a.key for a in overview.answers] == [
        "answer-time",
        "answer-evaluations",
        "answer-hardware",
        "answer-expression",
    ]
    for answer in overview.answers:
        assert answer.sentences and all(s.endswith(".") for s in answer.sentences)
        assert all(b.table is not None and b.table.rows for b in answer.blocks)
        assert all(isinstance(p.drawing, Absent) or p.alt for p in answer.panels)


def test_what_masking_and_counting_say_stands_side_by_side(overview: Overview) -> None:
    """The paper counts 70 % of the dense FLOPs; masking executes all of them, at 0.91x to 0.71x of the speed."""
    answer = next(a for a in overview.answers if a.key == "answer-evaluations")
    assert "promised by counting 1.43x" in answer.sentences[2]
    assert "0 are measurably faster in the form that is usually published" in answer.sentences[0]


def test_a_run_without_any_time_says_so(tmp_path: Path) -> None:
    infos = [made_up.info(), made_up.info(made_up.CASCADED)]
    path = made_up.write_run(tmp_path / "run", made_up.manifest(*infos), [made_up.refused("cascading", 8, "no Loop")])
    write_report(path)
    assert "Nothing was timed; see Not measured." in text_of(path / "report.html")


def test_claims_stand_beside_what_was_measured_of_the_same_method(tmp_path: Path) -> None:
    infos = [made_up.info(name="skipnet38_digits", title="S"), made_up.info(name="skippy", title="T")]
    cells = [c for i in infos for c in made_up.group(8, workload=i.name)]
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(*infos), cells))
    answer = next(
        a for a in build_overview(run, {i.name: i.name for i in infos}).answers if a.key == "answer-evaluations"
    )
    table = answer.blocks[-1].table
    assert table is not None and table.key == "answer claims"
    keys = [column.key for column in table.columns]
    rows = [{key: value.text for key, value in zip(keys, row, strict=True)} for row in table.rows]
    assert [row["method"] for row in rows] == [claim.method for claim in CLAIMS]
    measured = [row for row in rows if row["workload"] != "–"]
    assert [(row["method"], row["workload"], row["step_2"]) for row in measured] == [
        ("SkipNet (ECCV 2018)", "S", "1.09x")
    ]
    assert measured[0]["saved"] == "29"
    others = [row["counterpart_note"] for row in rows if row["workload"] == "–"]
    assert all(note.startswith(("not in this run: ", "no counterpart: ")) for note in others)


def test_a_claim_whose_workload_could_not_be_timed_says_so(tmp_path: Path) -> None:
    infos = [made_up.info(name="skipnet38_digits", title="S"), made_up.info(name="tome_digits", title="T")]
    cells = [made_up.refused("compaction", 8, "no such operator", workload="tome_digits")]
    cells += made_up.group(8, workload="skipnet38_digits")
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(*infos), cells))
    summaries = summarise(list(run.manifest.workloads.values()), run.cells)
    (row,) = (r for r in counterparts(summaries) if r.get("workload", missing("")).text == "T")
    assert row["counterpart_note"].text.startswith("no dynamic network was timed; see Not measured")
    assert list(counterparts([s for s in summaries if s.info.name == "none"])) == []


def test_every_claim_has_a_workload_that_comes_along_or_a_reason() -> None:
    assert len(CLAIMS) == 22 and len({claim.method for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert all(any(name.startswith(begin) for name in workload_files()) for begin in claim.workloads)
        assert claim.workloads or claim.note.startswith("no counterpart: ")


def test_a_family_shows_what_more_parts_cost(tmp_path: Path) -> None:
    """With as many experts the static network takes as much longer as the dynamic one is faster."""
    infos, cells = [], []
    for experts, speed in ((2, 1.0), (8, 2.0), (4, 1.5)):
        name = f"made_up@experts={experts}"
        varied = {"of": "made_up", "argument": "experts", "value": experts}
        infos.append(made_up.info(name=name, title=name, varied=varied))
        cells.append(made_up.cell("compaction", 8, speed, workload=name))
        cells.append(made_up.cell("ResNet-38", 8, None, workload=name, kind="baseline", primary=True))
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(*infos), cells))
    answer = build_overview(run, {i.name: i.name for i in infos}).answers[-1]
    assert answer.key == "answer-modularity"
    assert "from 2 to 8 experts the time per item of the static network becomes 1.00x" in answer.sentences[0]
    assert "that of the dynamic one 0.50x" in answer.sentences[0]
    table = answer.blocks[0].table
    assert table is not None and [row[0].text for row in table.rows] == ["made_up"] * 3


def test_language_models_are_told_by_token(tmp_path: Path) -> None:
    tokens = {
        "samples": 64,
        "tokens": 3,
        "spread": 0.25,
        "by_position": [1.2, 1.0, 0.8],
        "by_entropy": [(0.5, 1.1), (4.0, 0.6)],
        "with_entropy": {"value": -0.3, "low": -0.4, "high": -0.2},
    }
    infos = [
        made_up.info(tokens=tokens),
        made_up.info(made_up.CASCADED, tokens={"samples": 8, "tokens": 3, "spread": 0.0}),
    ]
    cells = [c for i in infos for c in made_up.group(8, workload=i.name)]
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(*infos), cells))
    answer = build_overview(run, {i.name: i.name for i in infos}).answers[-1]
    assert answer.key == "answer-language"
    assert "is surest (0.50 bits) takes 1.10x the mean" in answer.sentences[0]
    assert "rank correlation with entropy -0.30 (95 % CI -0.40 to -0.20)" in answer.sentences[0]
    assert "every token costs the same" in answer.sentences[1]
    assert "has 90.1 % top-1 accuracy, ResNet-38 90.5 % top-1 accuracy" in answer.sentences[2]
    assert [p.key for p in answer.panels] == ["answer-entropy", "answer-position"]
    assert len(answer.blocks) == 2


def test_controls_whose_result_is_known_are_judged_in_the_overview(tmp_path: Path) -> None:
    infos = [made_up.info(role="positive control"), made_up.info(made_up.CASCADED, role="null control")]
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(*infos), made_up.group(32)))
    overview = build_overview(run, {i.name: i.name for i in infos})
    assert "1 of 1 positive controls came out as expected." in overview.sentences
    assert "0 of 1 null controls came out as expected." in overview.sentences
    assert "Made-up cascade, a null control: not judged; no dynamic network was timed." in overview.sentences
    table = overview.table.table
    assert table is not None
    (column,) = (i for i, c in enumerate(table.columns) if c.key == "overview_role")
    assert {row[column].text for row in table.rows} == {"positive control: as expected", "null control: not judged"}


def test_a_loss_without_controls_is_marked_and_one_by_controls_is_not(tmp_path: Path) -> None:
    infos = [made_up.info(), made_up.info(made_up.CASCADED)]
    cells = [explained(c) if c.arm.strategy == "compaction" else c for c in made_up.group(32)]
    cells += made_up.group(32, workload=made_up.CASCADED)
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(*infos), cells))
    table = build_overview(run, {i.name: i.name for i in infos}).table.table
    assert table is not None
    (column,) = (i for i, c in enumerate(table.columns) if c.key == "largest_loss")
    assert f"{BY_PROFILE}: it has no controls" in table.columns[column].definition
    marked = {row[0].text: row[column].text.endswith(BY_PROFILE) for row in table.rows}
    assert marked == {made_up.TITLES[made_up.SKIPPED]: False, made_up.TITLES[made_up.CASCADED]: True}


def column(overview: Overview, key: str) -> dict[str, str]:
    """What a column of the table of all workloads says, by title."""
    table = overview.table.table
    assert table is not None
    (place,) = (i for i, c in enumerate(table.columns) if c.key == key)
    return {row[0].text: row[place].text for row in table.rows}


def test_a_workload_that_could_not_be_deployed_stands_out_among_those_that_were(tmp_path: Path) -> None:
    infos = [made_up.info(), made_up.info(made_up.CASCADED)]
    cells = [*made_up.group(32), *made_up.group(32, workload=made_up.CASCADED)]

    def marked(name: str, cells: list[Cell]) -> dict[str, bool]:
        run = Run.open(made_up.write_run(tmp_path / name, made_up.manifest(*infos), cells))
        found = column(build_overview(run, {i.name: i.name for i in infos}), "at:32")
        return {title: text.endswith(f" {AS_WRITTEN}") for title, text in found.items()}

    skipped, cascaded = made_up.TITLES[made_up.SKIPPED], made_up.TITLES[made_up.CASCADED]
    assert marked("none", cells) == {skipped: False, cascaded: False}
    assert marked("one", [*cells, *made_up.deployed(32, 1.5)]) == {skipped: False, cascaded: True}


def test_losses_are_those_of_the_deployed_network_where_it_has_controls(tmp_path: Path) -> None:
    infos = [made_up.info(), made_up.info(made_up.CASCADED)]
    deployed = made_up.deployed(32, 1.5)
    fall = explained(deployed[0]).waterfall
    cells = [explained(c) if c.arm.strategy == "compaction" else c for c in made_up.group(32)]
    cells += [c.model_copy(update={"deployed_waterfall": fall}) if c.arm.kind == "strategy" else c for c in deployed]
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(*infos), cells))
    (standing,) = summarise(infos, run.cells)[0].at.values()
    assert fall is not None and standing.of_deployed and standing.losses == {f.name: f.value for f in fall.factors}
    answer = next(a for a in build_overview(run, {i.name: i.name for i in infos}).answers if a.key == "answer-hardware")
    assert "for 1 of 1 networks, deployed; its median factor is" in answer.sentences[0]
