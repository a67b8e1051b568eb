"""Run directories survive crashes, and what is corrupt is named."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.errors import UserError
from dynbench.files import remove_leftovers, write_aside, write_text
from dynbench.scratch import owned
from dynbench.store.run import (
    CELLS,
    COLUMNS,
    MANIFEST,
    Run,
    RunWriter,
    file_name,
    holds_run,
    samples_file,
    trace_path,
    write_samples,
)
from dynbench.store.schema import SCHEMA_VERSION, Cell, RoundSample
from tests.store.records import cell, cells, manifest, sample, samples, store_samples

GROUP = "net/learned/cpu/b8/float32/t1"


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    return RunWriter.create(tmp_path / "run", manifest())


def lines(writer: RunWriter) -> Path:
    return writer.path / "cells.jsonl"


def test_what_is_written_is_read(writer: RunWriter) -> None:
    masking, dense = cell("masking", bytes_touched=3.0), cell("dense", "refused", reason="why")
    writer.append_cell(masking)
    writer.append_cell(dense)
    finished = manifest(status="complete", timed_s=3.5)
    writer.write_manifest(finished)
    run = Run.open(writer.path)
    assert (run.manifest, run.cells, run.warnings) == (finished, [masking, dense], [])
    assert writer.manifest == finished


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.lists(cells, max_size=4, unique_by=lambda c: c.cell_id))
def test_any_cells_come_back_in_order(tmp_path_factory: pytest.TempPathFactory, written: list[Cell]) -> None:
    writer = RunWriter.create(tmp_path_factory.mktemp("runs"), manifest())
    for c in written:
        writer.append_cell(c)
    assert Run.open(writer.path).cells == written


def test_the_latest_line_of_a_cell_wins_and_keeps_its_place(writer: RunWriter) -> None:
    for c in (cell("masking", "interrupted"), cell("dense"), cell("masking", rounds=20)):
        writer.append_cell(c)
    assert [(c.arm.name, c.status, c.rounds) for c in Run.open(writer.path).cells] == [
        ("masking", "ok", 20),
        ("dense", "ok", 0),
    ]


def test_two_arms_do_not_share_an_id(writer: RunWriter) -> None:
    writer.append_cell(cell("masking"))
    writer.append_cell(cell("dense", cell_id=f"{GROUP}/masking"))
    with pytest.raises(UserError, match=r"cells.jsonl:2 is corrupt: an earlier line has the id '.*/masking', too"):
        Run.open(writer.path)


def test_a_cell_of_which_nothing_came_yet_is_not_stored(writer: RunWriter) -> None:
    with pytest.raises(ValueError, match="masking is only planned"):
        writer.append_cell(cell("masking", "planned"))
    assert Run.open(writer.path).cells == []


def test_interrupted_cells_are_not_finished(writer: RunWriter) -> None:
    for status in ("ok", "refused", "failed", "interrupted"):
        writer.append_cell(cell(status, status))
    assert Run.open(writer.path).finished_cells() == {f"{GROUP}/{s}" for s in ("ok", "refused", "failed")}


def test_cells_of_a_group_that_is_measured_again_are_forgotten(writer: RunWriter) -> None:
    for strategy in ("masking", "compaction", "masking", "cascading"):
        writer.append_cell(cell(strategy))
    writer.forget({f"{GROUP}/masking"})
    assert [c.cell_id for c in Run.open(writer.path).cells] == [f"{GROUP}/compaction", f"{GROUP}/cascading"]
    assert len(lines(writer).read_bytes().splitlines()) == 2


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_last_line_cut_off_is_left_out_with_a_warning(writer: RunWriter, cut: int) -> None:
    writer.append_cell(cell("masking"))
    whole = lines(writer).read_bytes()
    lines(writer).write_bytes(whole + whole[:cut])
    run = Run.open(writer.path)
    assert [c.arm.name for c in run.cells] == ["masking"]
    assert [w.id for w in run.warnings] == ["DB-STORE-01"]


def test_a_last_line_without_its_end_of_line_is_whole(writer: RunWriter) -> None:
    writer.append_cell(cell("masking"))
    lines(writer).write_bytes(lines(writer).read_bytes()[:-1])
    run = Run.open(writer.path)
    assert ([c.arm.name for c in run.cells], run.warnings) == (["masking"], [])


@pytest.mark.parametrize("rest", ["", '{"cell_id": "ne'])
@pytest.mark.parametrize("before", [0, 1])
def test_resuming_does_not_glue_a_line_to_a_cut_off_one(writer: RunWriter, rest: str, before: int) -> None:
    whole = "".join(cell("masking").model_dump_json() + "\n" for _ in range(before))
    lines(writer).write_text(whole[:-1] if not rest else whole + rest, encoding="utf-8")
    again = RunWriter.resume(writer.path)
    again.append_cell(cell("dense"))
    run = Run.open(writer.path)
    assert [c.arm.name for c in run.cells] == ["masking", "dense"][1 - before :]
    assert run.warnings == []
    assert again.manifest == writer.manifest


def test_resuming_removes_what_a_killed_process_left(writer: RunWriter) -> None:
    left = [folder / ".dynbench-0123.part" for folder in (writer.path, writer.path / "samples")]
    for file in left:
        file.touch()
    RunWriter.resume(writer.path)
    assert not any(file.exists() for file in left)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"cell_id": "ne', "not JSON"),
        ("", "not JSON"),
        ("[1]", "a table is expected, found list"),
        ('{"cell_id": "a", "speling": 1}', "corrupt: group_id: field required"),
        ('{"schema_version": "three"}', "schema_version: a whole number from 1 on is expected, found 'three'"),
        ('{"schema_version": 0}', "schema_version: a whole number from 1 on is expected, found 0"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_corrupt_line_elsewhere_is_named_with_its_number(writer: RunWriter, bad: str, says: str) -> None:
    good = cell("masking").model_dump_json()
    lines(writer).write_text(f"{good}\n{bad}\n{good}\n", encoding="utf-8")
    with pytest.raises(UserError) as e:
        Run.open(writer.path)
    assert "cells.jsonl:2 is corrupt" in str(e.value)
    assert says in str(e.value)


def test_an_unknown_key_is_named(writer: RunWriter) -> None:
    lines(writer).write_text(json.dumps({**cell("masking").model_dump(), "speling": 1}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"cells.jsonl:1 is corrupt: speling: extra inputs"):
        Run.open(writer.path)


def test_a_run_of_a_newer_dynbench_is_refused(writer: RunWriter) -> None:
    newer = {"schema_version": SCHEMA_VERSION + 1, "new": "field"}
    lines(writer).write_text(json.dumps(newer) + "\n", encoding="utf-8")
    newest = f"schema version {SCHEMA_VERSION + 1}"
    with pytest.raises(UserError, match=rf"cells.jsonl:1 was written by a newer dynbench.*{newest}"):
        Run.open(writer.path)
    (writer.path / "manifest.json").write_text(json.dumps(newer), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest.json was written by a newer dynbench"):
        Run.open(writer.path)


@pytest.mark.parametrize("content", ["{", "", '{"run_id": 3}', "\udcff".encode("utf-8", "surrogateescape")])
def test_a_corrupt_manifest_is_named(writer: RunWriter, content: str | bytes) -> None:
    file = writer.path / "manifest.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"manifest.json is corrupt"):
        Run.open(writer.path)


def test_a_folder_without_a_run_is_said_to_be_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no run: there is no manifest.json"):
            Run.open(path)
        with pytest.raises(UserError, match="holds no run"):
            RunWriter.resume(path)


def test_a_run_without_cells_can_be_read(writer: RunWriter) -> None:
    assert Run.open(writer.path).cells == []


@pytest.fixture
def published(writer: RunWriter) -> Path:
    """A run whose files were packed, as they lie under reports/."""
    writer.append_cell(cell("masking"))
    for name in (MANIFEST, CELLS):
        (writer.path / f"{name}.gz").write_bytes(gzip.compress((writer.path / name).read_bytes()))
        (writer.path / name).unlink()
    return writer.path


def test_a_published_run_is_read(published: Path) -> None:
    assert holds_run(published) and Run.open(published).manifest == manifest()
    assert Run.open(published).cells == [cell("masking")]


def test_a_published_run_is_neither_resumed_nor_written_over(published: Path) -> None:
    with pytest.raises(UserError, match=r"was published: .* unpack manifest\.json\.gz and cells\.jsonl\.gz first"):
        RunWriter.resume(published)
    with pytest.raises(UserError, match="holds another run"):
        RunWriter.create(published, manifest())


@pytest.mark.parametrize("name", ["manifest.json.gz", "cells.jsonl.gz"])
@pytest.mark.parametrize("content", [b"{}", gzip.compress(b"{}")[:-6]], ids=["not packed", "cut off"])
def test_corrupt_packed_files_are_named(published: Path, name: str, content: bytes) -> None:
    (published / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        Run.open(published)


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "a\0b"])
def test_what_cannot_be_a_folder_holds_no_run(tmp_path: Path, name: str) -> None:
    assert not holds_run(tmp_path / name)


def test_another_run_is_not_written_over(writer: RunWriter) -> None:
    with pytest.raises(UserError, match="holds another run"):
        RunWriter.create(writer.path, manifest(run_id="other"))
    assert Run.open(writer.path).manifest.run_id == "r"


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    RunWriter.create(tmp_path, manifest())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file/run: Not a directory"):
        RunWriter.create(tmp_path / "file" / "run", manifest())
    with pytest.raises(UserError, match=r"cannot write to .*file: File exists"):
        RunWriter.create(tmp_path / "file", manifest())


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="cannot write to .*: Permission denied"):
        RunWriter.create(tmp_path, manifest())


def test_a_folder_that_vanished_is_named_by_every_write(writer: RunWriter) -> None:
    gone = RunWriter(writer.path / "gone", manifest())
    for write in (
        lambda: gone.append_cell(cell("masking")),
        lambda: gone.write_manifest(manifest()),
        lambda: store_samples(gone.path, GROUP, [sample()]),
    ):
        with pytest.raises(UserError, match=r"cannot write to .*gone.*No such file"):
            write()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text("old", encoding="utf-8")
    with (
        pytest.raises(UserError, match=r"cannot write to .*manifest.json: No space left on device"),
        write_aside(file) as aside,
    ):
        aside.write(b"ne")
        raise OSError(28, "No space left on device")
    with pytest.raises(ZeroDivisionError), write_aside(file) as aside:
        aside.write(bytes(1 // 0))
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_symbolic_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("mine", encoding="utf-8")
    link.symlink_to(target)
    write_text(link, "new")
    assert not link.is_symlink() and link.read_text(encoding="utf-8") == "new"
    assert target.read_text(encoding="utf-8") == "mine"


def test_a_file_that_lies_where_the_new_one_would_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    target = tmp_path / "target"
    target.write_text("mine", encoding="utf-8")
    (tmp_path / f".{owned('aside')}guessed.part").symlink_to(target)
    with pytest.raises(UserError, match="cannot write to .*out.txt: File exists"):
        write_text(tmp_path / "out.txt", "new")
    assert target.read_text(encoding="utf-8") == "mine" and not (tmp_path / "out.txt").exists()


def test_cells_are_not_written_through_a_symbolic_link(writer: RunWriter, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine", encoding="utf-8")
    lines(writer).symlink_to(target)
    with pytest.raises(UserError, match=r"cannot write to .*cells.jsonl"):
        writer.append_cell(cell("masking"))
    assert target.read_text(encoding="utf-8") == "mine"


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "written", "new")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / "a.part"
    kept.touch()
    (tmp_path / ".dynbench-ab.part").touch()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_reader_sees_the_old_file_until_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "manifest.json"
    file.write_text("old", encoding="utf-8")
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(file.read_text(encoding="utf-8"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(file, "new")
    assert synced == ["old", "new"]  # the file's content before the rename, the folder's names after it


def test_a_cell_is_synced_before_append_returns(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(lines(writer).read_bytes())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    writer.append_cell(cell("masking"))
    assert synced and synced[0].endswith(b"}\n")


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.lists(samples, max_size=4))
def test_samples_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, written: list[RoundSample]) -> None:
    writer = RunWriter.create(tmp_path_factory.mktemp("runs"), manifest())
    file = store_samples(writer.path, GROUP, written)
    assert file == samples_file(writer.path, GROUP)
    table = pq.read_table(file)
    assert [RoundSample.model_validate(row) for row in table.to_pylist()] == written
    assert table.schema.metadata[b"group_id"] == GROUP.encode()
    assert len(Run.open(writer.path).samples(GROUP)) == len(written)


def columns(rows: int = 3, **changes: Any) -> dict[str, Any]:
    """As a measuring process has them: arrays and lists."""
    found: dict[str, Any] = {name: np.arange(rows) for name in COLUMNS}
    return {**found, "arm": ["masking"] * rows, "device_ns": [None] * rows} | changes


def test_samples_are_written_from_lists_and_arrays(writer: RunWriter) -> None:
    write_samples(writer.path, GROUP, columns(duration_ns=[5, 6, 7], device_ns=[None, 2, None]))
    frame = Run.open(writer.path).samples(GROUP)
    assert tuple(frame) == COLUMNS
    assert frame["duration_ns"].tolist() == [5, 6, 7]
    assert frame["arm"].tolist() == ["masking"] * 3 and isinstance(frame["arm"].dtype, pd.CategoricalDtype)
    assert frame["device_ns"].isna().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"arms": ["masking"] * 3}, "the columns of samples are process, .*; given: .*, arms"),
        ({"arm": ["masking", None, "masking"]}, "column arm of the samples has rows without a value"),
        ({"batch_id": [0, 1]}, "length"),
        ({"duration_ns": np.array([0.5, 1, 2])}, "Float value 0.5"),
    ],
)
def test_samples_that_do_not_fit_are_not_written(writer: RunWriter, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        write_samples(writer.path, GROUP, columns(**changes))
    assert list((writer.path / "samples").iterdir()) == []


def test_samples_of_a_group_measured_again_replace_the_old(writer: RunWriter) -> None:
    store_samples(writer.path, GROUP, [sample(0), sample(1)])
    store_samples(writer.path, GROUP, [sample(5)])
    assert Run.open(writer.path).samples(GROUP)["round"].tolist() == [5]


def test_a_group_without_samples_has_no_rows(writer: RunWriter) -> None:
    frame = Run.open(writer.path).samples("other")
    assert frame.empty
    assert list(frame) == list(RoundSample.model_fields)


def test_corrupt_samples_are_named(writer: RunWriter) -> None:
    file = store_samples(writer.path, GROUP, [sample()])
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"samples/net__learned.*parquet is corrupt"):
        Run.open(writer.path).samples(GROUP)


def test_samples_of_a_newer_dynbench_are_refused(writer: RunWriter) -> None:
    file = store_samples(writer.path, GROUP, [sample()])
    pq.write_table(pq.read_table(file).replace_schema_metadata({"schema_version": str(SCHEMA_VERSION + 1)}), file)
    with pytest.raises(UserError, match=rf"parquet was written by a newer dynbench.* {SCHEMA_VERSION + 1}"):
        Run.open(writer.path).samples(GROUP)


@pytest.mark.parametrize("name", ["a/b", "a__b", "a b", "a_b", "../../etc/passwd", "é" * 300, "x" * 400, "", "A/b"])
def test_file_names_stay_inside_and_differ(name: str) -> None:
    found = file_name(name)
    assert "/" not in found and not found.startswith(".") and len(found.encode()) < 120
    others = ["a/b", "a__b", "a b", "a_b", "A/b"]
    assert found not in [file_name(o) for o in others if o != name]


def test_traces_lie_in_their_folder(tmp_path: Path) -> None:
    path = trace_path(tmp_path, "net", "synthetic keep=0.50")
    assert path.parent == tmp_path / "traces"
    assert path.name.startswith("net__synthetic_keep=0.50-")
