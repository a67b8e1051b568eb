"""Run directories survive crashes, and what is corrupt is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.errors import UserError
from dynbench.store.files import write_aside
from dynbench.store.run import Run, RunWriter, file_name, samples_file, trace_path
from dynbench.store.schema import SCHEMA_VERSION, Cell, RoundSample
from tests.store.records import cell, cells, manifest, sample, samples

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
    assert [(c.name, c.status, c.rounds) for c in Run.open(writer.path).cells] == [
        ("masking", "ok", 20),
        ("dense", "ok", 0),
    ]


def test_interrupted_cells_are_not_finished(writer: RunWriter) -> None:
    for status in ("ok", "refused", "failed", "interrupted"):
        writer.append_cell(cell(status, status))
    assert writer.finished_cells() == {f"{GROUP}/{s}" for s in ("ok", "refused", "failed")}


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_last_line_cut_off_is_left_out_with_a_warning(writer: RunWriter, cut: int) -> None:
    writer.append_cell(cell("masking"))
    whole = lines(writer).read_bytes()
    lines(writer).write_bytes(whole + whole[:cut])
    run = Run.open(writer.path)
    assert [c.name for c in run.cells] == ["masking"]
    assert [w.id for w in run.warnings] == ["DB-STORE-01"]


def test_a_last_line_without_its_end_of_line_is_whole(writer: RunWriter) -> None:
    writer.append_cell(cell("masking"))
    lines(writer).write_bytes(lines(writer).read_bytes()[:-1])
    run = Run.open(writer.path)
    assert ([c.name for c in run.cells], run.warnings) == (["masking"], [])


@pytest.mark.parametrize("rest", ["", '{"cell_id": "ne'])
@pytest.mark.parametrize("before", [0, 1])
def test_resuming_does_not_glue_a_line_to_a_cut_off_one(writer: RunWriter, rest: str, before: int) -> None:
    whole = "".join(cell("masking").model_dump_json() + "\n" for _ in range(before))
    lines(writer).write_text(whole[:-1] if not rest else whole + rest, encoding="utf-8")
    again = RunWriter.resume(writer.path)
    again.append_cell(cell("dense"))
    run = Run.open(writer.path)
    assert [c.name for c in run.cells] == ["masking", "dense"][1 - before :]
    assert run.warnings == []
    assert again.manifest == writer.manifest


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"cell_id": "ne', "not JSON"),
        ("", "not JSON"),
        ("[1]", "a table is expected, found list"),
        ('{"cell_id": "a", "speling": 1}', "corrupt: group_id: field required"),
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
        lambda: gone.write_samples(GROUP, [sample()]),
    ):
        with pytest.raises(UserError, match=r"cannot write to .*gone.*No such file"):
            write()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text("old", encoding="utf-8")

    def half(aside: Path) -> None:
        aside.write_text("ne", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write to .*manifest.json: No space left on device"):
        write_aside(file, half)
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


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
    write_aside(file, lambda aside: aside.write_text("new", encoding="utf-8") and None)
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
    writer.write_samples(GROUP, written)
    table = pq.read_table(samples_file(writer.path, GROUP))
    assert [RoundSample.model_validate(row) for row in table.to_pylist()] == written
    assert table.schema.metadata[b"group_id"] == GROUP.encode()
    assert len(Run.open(writer.path).samples(GROUP)) == len(written)


def test_samples_of_a_group_measured_again_replace_the_old(writer: RunWriter) -> None:
    writer.write_samples(GROUP, [sample(0), sample(1)])
    writer.write_samples(GROUP, [sample(5)])
    frame = Run.open(writer.path).samples(GROUP)
    assert isinstance(frame, pd.DataFrame)
    assert frame["round"].tolist() == [5]


def test_a_group_without_samples_has_no_rows(writer: RunWriter) -> None:
    frame = Run.open(writer.path).samples("other")
    assert frame.empty
    assert list(frame) == list(RoundSample.model_fields)


def test_corrupt_samples_are_named(writer: RunWriter) -> None:
    writer.write_samples(GROUP, [sample()])
    file = samples_file(writer.path, GROUP)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"samples/net__learned.*parquet is corrupt"):
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
