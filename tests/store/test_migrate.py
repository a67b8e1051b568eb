"""Runs of older dynbench are read as what they were, or refused in one sentence; never as something else."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.errors import UserError
from dynbench.report.content import build
from dynbench.store.run import Run, RunWriter, cell_lines, parse_cell, samples_file
from dynbench.store.schema import SCHEMA_VERSION, Arm, Cell
from tests.report import made_up

OLD = Path(__file__).parent / "run_v2"
"""A run as version 2 wrote it: two groups of a small network under four strategies, a baseline in another form."""
LEARNED, SWEEP = (f"tiny/{label}/cpu/b4/float32/t1" for label in ("learned", "synthetic keep=0.50"))
MANIFEST = json.loads((OLD / "manifest.json").read_text(encoding="utf-8"))
REPORTS = sorted(Path(__file__).parents[2].glob("reports/*/cells.jsonl*"))


def tables(cells: Path = OLD / "cells.jsonl") -> list[dict[str, Any]]:
    """The cells as they lie in the file, the last line of each."""
    lines = (json.loads(line) for line in cell_lines(cells.parent)[0])
    return list({table["cell_id"]: table for table in lines}.values())


def old_name(arm: Arm) -> tuple[str, str]:
    """Kind and name as the older versions rendered them, written down here once more."""
    if arm.kind == "control":
        return "control", f"{arm.strategy}, live decisions"
    return arm.kind, str(arm.strategy if arm.kind == "strategy" else arm.baseline)


# --- cells and manifests ---------------------------------------------------------------------------------------------


def test_arms_of_an_old_run_have_their_identity() -> None:
    run = Run.open(OLD)
    assert run.schema_version == 2 and run.manifest.schema_version == SCHEMA_VERSION
    strategies = [Arm(kind="strategy", strategy=s) for s in ("dense", "compaction", "per_sample", "masking")]
    plain = Arm(kind="baseline", baseline="plain")
    laid_out = Arm(kind="baseline", baseline="plain, laid out", form="channels_last")
    control = Arm(kind="control", strategy="compaction", live=True)
    assert [c.arm for c in run.cells if c.group_id == LEARNED] == [*strategies, plain, laid_out, control]
    assert [c.arm for c in run.cells if c.group_id == SWEEP] == [*strategies, plain, laid_out]
    assert all(c.cell_id == f"{c.group_id}/{c.arm.key}" for c in run.cells)


def test_what_followed_from_names_is_said_of_old_cells() -> None:
    cells = Run.open(OLD).cells
    assert {c.arm.name for c in cells if c.static_twin} == {"dense"}
    assert {c.arm.name for c in cells if c.item_by_item} == {"per_sample"}
    assert {c.group_id for c in cells if c.decisions.sweep} == {SWEEP}


def test_a_baseline_that_has_the_name_of_a_strategy_stays_a_baseline() -> None:
    (old,) = (t for t in tables() if t["name"] == "plain" and t["group_id"] == LEARNED)
    for name in ("dense", "per_sample"):
        found = parse_cell(json.dumps(old | {"name": name}), "here")
        assert found.arm == Arm(kind="baseline", baseline=name)
        assert (found.static_twin, found.item_by_item) == (name == "dense", False)


@pytest.mark.parametrize("cells", [OLD / "cells.jsonl", *REPORTS], ids=lambda file: file.parent.name)
def test_everything_else_of_old_cells_stays(cells: Path) -> None:
    found, stored = Run.open(cells.parent).cells, tables(cells)
    assert len(found) == len(stored)
    moved = {"schema_version", "cell_id", "arm", "name", "engine", "form"}
    grown = {"decisions", "witnesses", "energy"}  # what was added to them later has its default
    for cell, old in zip(found, stored, strict=True):
        new = cell.model_dump(mode="json")
        for candidate in old.get("candidates", []):  # before there were controls nothing was left out
            candidate["arm"].setdefault("without", None)
        assert {k: new[k] for k in old.keys() - moved - grown} == {k: old[k] for k in old.keys() - moved - grown}
        assert all({k: new[part][k] for k in old[part]} == old[part] for part in grown if old[part] is not None)
        if "name" in old:  # before arms had an identity
            assert (*old_name(cell.arm), cell.arm.engine, cell.arm.form) == tuple(
                old[k] for k in ("arm", "name", "engine", "form")
            )
        else:
            assert new["arm"] == {"without": None} | old["arm"]


def test_published_runs_are_in_the_checkout() -> None:
    assert len(REPORTS) >= 2


@pytest.mark.parametrize(
    ("points", "arguments", "actions"),
    [
        ({"Skip": 2, "Exits": 1}, {}, ["skips", "leaves early"]),
        ({"Exits": 1, "Loop": 1, "Skip": 1}, {}, ["skips", "leaves early"]),
        ({"Route": 4}, {"experts": 8, "k": 2}, ["uses 2 of 8 experts per token"]),
        ({"Skip": 1, "Route": 4}, {}, ["uses some of its experts per token", "skips"]),
        ({"Program": 1}, {}, ["composes its modules for each item"]),
        ({"Choice": 3}, {}, ["decides what to look at"]),
        ({"Choice": 3, "Loop": 1}, {}, ["leaves early"]),
        ({"Width": 3}, {}, []),
        ({}, {}, []),
    ],
)
def test_what_old_workloads_do_follows_from_their_points(
    tmp_path: Path, points: dict[str, int], arguments: dict[str, int], actions: list[str]
) -> None:
    info = MANIFEST["workloads"]["tiny"] | {"points": points, "model_args": arguments, "inputs": "Bytes of a book"}
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | {"workloads": {"tiny": info}}), encoding="utf-8")
    assert Run.open(tmp_path).manifest.workloads["tiny"].actions == actions


def test_cells_of_version_1_are_read() -> None:
    old = tables()[1] | {"schema_version": 1}
    for key in ("again", "witnesses"):
        del old[key]
    for speedup in old["speedups"]:
        del speedup["resolution"]
    found = parse_cell(json.dumps(old), "here")
    assert found.arm == Arm(kind="strategy", strategy="compaction")
    assert found.witnesses is None and found.speedups[0].resolution is None


def test_a_run_of_version_3_has_no_deployed_cells_and_is_otherwise_the_same(tmp_path: Path) -> None:
    new = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), made_up.group(1)))
    file, described = new.path / "cells.jsonl", new.path / "manifest.json"
    since = ("deployed", "deployed_speedups", "candidates")
    old = [{k: v for k, v in table.items() if k not in since} | {"schema_version": 3} for table in tables(file)]
    file.write_text("".join(json.dumps(table) + "\n" for table in old), encoding="utf-8")
    told = json.loads(described.read_text(encoding="utf-8")) | {"schema_version": 3}
    described.write_text(json.dumps(told), encoding="utf-8")
    found = Run.open(new.path)
    assert found.schema_version == 3 and found.cells == new.cells
    group = found.cells[0].group_id
    assert set(found.samples(group)["arm"]) == set(new.samples(group)["arm"])
    report = build(found)
    assert all(s.key != "deploy" for s in report.sections) and report.verdicts == build(new).verdicts


def test_an_old_run_is_not_resumed(tmp_path: Path) -> None:
    run = shutil.copytree(OLD, tmp_path / "run")
    before = (run / "cells.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"run was begun by an older dynbench \(schema version 2, .* not resumed"):
        RunWriter.resume(run)
    assert (run / "cells.jsonl").read_bytes() == before


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_of_an_old_run_name_its_arms() -> None:
    run = Run.open(OLD)
    again = Arm(kind="baseline", baseline="plain", again=True).key
    for group, repeated in ((LEARNED, {again}), (SWEEP, set())):
        frame = run.samples(group)
        assert set(frame["arm"]) == {c.arm.key for c in run.cells if c.group_id == group} | repeated
        stored = pd.read_parquet(samples_file(OLD, group))
        rest = [c for c in frame if c != "arm"]
        pd.testing.assert_frame_equal(frame[rest], stored[rest])
        rows = frame["arm"] == "baseline:plain, laid out, channels_last"
        assert (rows == (stored["arm"] == "baseline:plain, laid out")).all() and rows.any()


def test_old_samples_without_their_cell_are_left_out(tmp_path: Path) -> None:
    run = shutil.copytree(OLD, tmp_path / "run")
    kept = [t for t in tables() if t["name"] != "masking"]
    (run / "cells.jsonl").write_text("".join(json.dumps(t) + "\n" for t in kept), encoding="utf-8")
    opened = Run.open(run)
    frame = opened.samples(LEARNED)
    assert "masking" not in set(frame["arm"]) and "masking" not in frame["arm"].cat.categories
    assert len(frame) == (Run.open(OLD).samples(LEARNED)["arm"] != "masking").sum()


def test_old_samples_that_two_arms_may_own_are_refused(tmp_path: Path) -> None:
    run = shutil.copytree(OLD, tmp_path / "run")
    renamed = [t | {"name": "plain, again"} if t["name"] == "plain, laid out" else t for t in tables()]
    (run / "cells.jsonl").write_text("".join(json.dumps(t) + "\n" for t in renamed), encoding="utf-8")
    with pytest.raises(UserError, match=r"parquet is corrupt: two arms are named 'baseline:plain, again'"):
        Run.open(run).samples(LEARNED)


def test_old_samples_without_arms_are_named(tmp_path: Path) -> None:
    run = shutil.copytree(OLD, tmp_path / "run")
    file = samples_file(run, LEARNED)
    table = pq.read_table(file)
    pq.write_table(table.set_column(3, "arm", pa.array(range(len(table)), pa.int64())), file)
    with pytest.raises(UserError, match="parquet is corrupt: column arm holds int64"):
        Run.open(run).samples(LEARNED)


# --- what is wrong with an old table is said -------------------------------------------------------------------------


def test_two_old_cells_that_become_one_are_refused(tmp_path: Path) -> None:
    run = shutil.copytree(OLD, tmp_path / "run")
    twin = next(t for t in tables() if t["name"] == "plain, laid out")
    twin |= {"name": "plain, laid out, channels_last", "form": "plain", "cell_id": "another"}
    with (run / "cells.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(twin) + "\n")
    with pytest.raises(UserError, match=r"cells.jsonl:14 is corrupt: an earlier line has the id .*channels_last'"):
        Run.open(run)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arm": "fast"}, "corrupt: arm: input should be 'strategy', 'baseline' or 'control'"),
        ({"arm": {"kind": "strategy"}}, "corrupt: arm: "),
        ({"name": 7}, "corrupt: name: input should be a valid string"),
        ({"name": None}, "corrupt: name: "),
        ({"engine": 1}, "corrupt: engine: "),
        ({"arm": "control"}, "corrupt: name: a control's name ends with ', live decisions', this one is 'dense'"),
        ({"decisions": None}, "corrupt: decisions: "),
        ({"decisions": {"source": "synthetic", "requested": 3, "label": "x"}}, "corrupt: decisions.requested: "),
        ({"speling": 1}, "corrupt: speling: extra inputs are not permitted"),
        ({"schema_version": 2.0}, "corrupt: schema_version: "),
        ({"schema_version": True}, "corrupt: schema_version: "),
        ({"schema_version": 3}, "corrupt: arm: "),
    ],
)
def test_an_old_cell_that_is_damaged_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as e:
        parse_cell(json.dumps(tables()[0] | changes), "cells.jsonl:1")
    assert str(e.value).startswith(f"cells.jsonl:1 is {says}")


def test_a_key_that_is_missing_is_named() -> None:
    for key in ("arm", "name", "group_id", "decisions", "batch_size"):
        old = tables()[0]
        del old[key]
        with pytest.raises(UserError, match=f"is corrupt: {key}: field required"):
            parse_cell(json.dumps(old), "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw: st.DrawFn, table: dict[str, Any]) -> dict[str, Any]:
    """A table with one value, at any depth, removed or replaced."""
    found = copy.deepcopy(table)
    place: Any = found
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner and draw(st.booleans())):
            break
        place = inner
    if draw(st.booleans()):
        del place[key]
    else:
        place[key] = draw(json_values)
    return found


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.sampled_from(tables()).flatmap(mutated))
def test_a_damaged_old_cell_is_refused_or_is_what_it_says(table: dict[str, Any]) -> None:
    try:
        found = parse_cell(json.dumps(table), "here")
    except UserError as e:
        assert "\n" not in str(e) and str(e).startswith("here ")
        return
    assert isinstance(found, Cell) and table["schema_version"] in (1, 2)
    assert old_name(found.arm) == (table["arm"], table["name"])
    assert (found.arm.engine, found.arm.form) == (table.get("engine", "eager"), table.get("form", "plain"))
    assert found.cell_id == f"{table['group_id']}/{found.arm.key}"
    assert found.static_twin == (table["name"] == "dense")


@settings(max_examples=200, derandomize=True, deadline=None)
@given(mutated(MANIFEST))
def test_a_damaged_old_manifest_is_refused_or_is_what_it_says(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]
) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / "manifest.json").write_text(json.dumps(table), encoding="utf-8")
    try:
        found = Run.open(run)
    except UserError as e:
        assert "\n" not in str(e)
        return
    assert found.schema_version in (1, 2) or "schema_version" not in table
    assert found.manifest.run_id == table["run_id"] and found.manifest.spec == table["spec"]
