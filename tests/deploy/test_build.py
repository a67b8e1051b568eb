"""From a network to a bundle: which items are stored, and that nothing is lost where writing fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import Tensor

from dynbench.deploy import build
from dynbench.deploy.bundle import EXPECTED, INPUTS, Manifest, Proof, check
from dynbench.dynamic.trace import Entry, Trace
from dynbench.errors import UserError
from dynbench.experiment import Options, graphs, load_specs
from dynbench.graph import Session
from tests.deploy.test_bundle import TINY, call, manifest, refused, rewrite, weight


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (spec,) = load_specs([str(TINY)])
    return build.compile_bundle(spec, tmp_path_factory.mktemp("bundles") / "tiny", Options()).folder


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


# --- which items are stored ---


def runs_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Tensor], Trace], None], least: int) -> None:
    """Lets sessions change what comes out of batches of at least so many items."""
    run = Session.run

    def changed(self: Session, x: Tensor, *rest: Any) -> tuple[list[Tensor], Trace]:
        answers, trace = run(self, x, *rest)
        if len(x) >= least:
            change(answers, trace)
        return answers, trace

    monkeypatch.setattr(Session, "run", changed)


def decide_otherwise(*items: int) -> Callable[[list[Tensor], Trace], None]:
    def change(answers: list[Tensor], trace: Trace) -> None:
        (key,) = [key for key in trace.entries if key[0] == "block0"]
        value, reached = trace.entries[key]
        value = value.clone()
        value[list(items)] = ~value[list(items)]
        trace.entries[key] = Entry(value, reached)
        answers[0][list(items)] += 1

    return change


def test_items_whose_decisions_are_within_rounding_are_not_stored(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_with(monkeypatch, decide_otherwise(3, 40), least=64)
    assert call("compile", TINY, "--out", tmp_path / "out").exit_code == 0
    found = manifest(tmp_path / "out")
    assert (found["items"], found["items_left_out"]) == (62, 2)
    kept = np.delete(np.load(written / INPUTS), [3, 40], axis=0)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / INPUTS), kept)
    assert all(compared.ok and compared.decisions_differ == 0 for compared in check(tmp_path / "out"))


def test_a_network_whose_decisions_are_within_rounding_is_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_with(monkeypatch, decide_otherwise(*range(17)), least=64)
    result = call("compile", TINY, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "17 of 64 items are decided otherwise" in result.output
    assert not (tmp_path / "out").exists()


def test_another_answer_after_the_same_decisions_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(answers: list[Tensor], trace: Trace) -> None:
        answers[0][5] += 1

    runs_with(monkeypatch, change, least=64)
    result = call("compile", TINY, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "answers otherwise than per_sample for 1 of 64 items" in result.output
    assert not (tmp_path / "out").exists()


def test_how_often_blocks_run_is_found_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, rates = [], graphs._rates

    def counted(*args: Any) -> dict[str, float]:
        asked.append(args)
        return rates(*args)

    monkeypatch.setattr(graphs, "_rates", counted)
    assert call("compile", TINY, "--out", tmp_path / "out").exit_code == 0
    assert len(asked) == 1


# --- what is proved is what was written ---


def test_the_graph_for_one_item_is_checked_with_all_of_them(bundle: Path) -> None:
    arrays = dict(np.load(bundle / EXPECTED))
    arrays["dynamic/answer"][-1] += 1
    np.savez(bundle / EXPECTED, **arrays)
    rewrite(bundle, EXPECTED, (bundle / EXPECTED).read_bytes())
    wrong = {(found.file, found.items) for found in check(bundle) if not found.ok}
    assert wrong == {
        ("dynamic.onnx", 64),
        ("dynamic.here.onnx", 64),
        ("single.onnx", 1),
        ("single.here.onnx", 1),
    }


def test_decisions_of_the_graph_for_one_item_are_compared(bundle: Path) -> None:
    arrays = dict(np.load(bundle / EXPECTED))
    arrays["decision/block1"][-1] ^= True
    np.savez(bundle / EXPECTED, **arrays)
    rewrite(bundle, EXPECTED, (bundle / EXPECTED).read_bytes())
    assert {found.decisions_differ for found in check(bundle) if found.file == "single.onnx"} == {1}


def test_every_bundle_has_a_graph_that_runs_everywhere(bundle: Path) -> None:
    table = manifest(bundle)
    table["graphs"] = [
        {**g, "optimised_for": {**g["optimised_for"], "onnxruntime": "0.1"}} for g in table["graphs"][3:]
    ]
    (bundle / "manifest.json").write_text(json.dumps(table))
    assert "no graph that runs on every machine" in refused(bundle)


def test_weights_in_other_files_are_refused(bundle: Path) -> None:
    model = onnx.load(bundle / "static.onnx")
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    tensor.ClearField("raw_data")
    rewrite(bundle, "static.onnx", model.SerializeToString())
    assert "takes weights from another file" in refused(bundle)


def test_a_list_of_who_was_asked_holds_yes_and_no_only(bundle: Path) -> None:
    arrays = dict(np.load(bundle / EXPECTED))
    arrays["reached/block0"] = arrays["reached/block0"].astype(np.int64)
    np.savez(bundle / EXPECTED, **arrays)
    rewrite(bundle, EXPECTED, (bundle / EXPECTED).read_bytes())
    assert "no list of yes and no" in refused(bundle)


@pytest.mark.parametrize("cut", [30, 200, -40])
def test_a_damaged_archive_is_one_sentence(bundle: Path, cut: int) -> None:
    content = bytearray((bundle / EXPECTED).read_bytes())
    content[cut] ^= 0xFF
    rewrite(bundle, EXPECTED, bytes(content[: len(content) - 7]))
    assert "expected.npz holds no arrays" in refused(bundle)


def test_objects_among_the_answers_are_refused(bundle: Path) -> None:
    arrays: dict[str, Any] = dict(np.load(bundle / EXPECTED))
    arrays["dynamic/answer"] = np.array([{"a": 1}] * 64, dtype=object)
    np.savez(bundle / EXPECTED, **arrays)
    rewrite(bundle, EXPECTED, (bundle / EXPECTED).read_bytes())
    assert "Object arrays cannot be loaded" in refused(bundle)


def test_a_file_name_that_no_disk_knows_is_refused(bundle: Path) -> None:
    table = manifest(bundle)
    table["sha256"]["x" * 300] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(table))
    assert "File name too long" in refused(bundle)


# --- writing ---


@pytest.fixture
def proved_before(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out making the graphs: their files are those of a bundle that was written before."""
    found = Manifest.model_validate_json((written / "manifest.json").read_bytes())
    files = {name: (written / name).read_bytes() for name in found.sha256}
    monkeypatch.setattr(build, "_contents", lambda *_, **__: (files, found))


def test_a_bundle_with_something_of_the_users_in_it_is_left_alone(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert "(notes.txt); choose another folder" in refused_to_write(bundle)
    assert (bundle / "notes.txt").read_text() == "mine"


def refused_to_write(out: Path) -> str:
    result = call("compile", TINY, "--out", out)
    assert result.exit_code == 2 and "Traceback" not in result.output
    return result.output


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, proved_before: None) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is no folder" in refused_to_write(tmp_path / "file")
    assert "cannot write to" in refused_to_write(tmp_path / "file" / "below" / "it")
    assert "File name too long" in refused_to_write(tmp_path / ("x" * 300))
    assert "cannot write to" in refused_to_write(Path("/proc/bundle"))


def test_the_working_folder_can_hold_the_bundle(
    tmp_path: Path, proved_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert call("compile", TINY, "--out", ".").exit_code == 0
    assert all(found.ok for found in check(tmp_path / "here"))


@pytest.mark.parametrize("ends", [KeyboardInterrupt, OSError])
def test_the_older_bundle_stays_where_the_last_step_fails(
    bundle: Path, proved_before: None, monkeypatch: pytest.MonkeyPatch, ends: type[BaseException]
) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    replace, done = Path.replace, []

    def fails(self: Path, target: Path) -> Path:
        if target == bundle:
            done.append(self)
            if len(done) == 1:
                raise ends(5, "Input/output error")
        return replace(self, target)

    (spec,) = load_specs([str(TINY)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        with pytest.raises(KeyboardInterrupt if ends is KeyboardInterrupt else UserError):
            build.compile_bundle(spec, bundle, Options())
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_an_older_version_of_a_bundle_is_replaced(bundle: Path, proved_before: None) -> None:
    model = onnx.load(bundle / "static.onnx")
    weight(model)
    rewrite(bundle, "static.onnx", model.SerializeToString())
    assert call("compile", TINY, "--out", bundle).exit_code == 0
    assert all(found.ok for found in check(bundle))


def test_a_proof_is_no_negative_number() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Proof(decisions="learned", items=1, error=-1.0)


def test_an_older_bundle_that_a_killed_process_laid_aside_is_put_back(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    aside = build._before(out)
    aside.mkdir()
    (aside / "only copy").touch()
    build._settle(out)
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "only copy"]
    aside.mkdir()  # by one that was killed when the new bundle was in its place
    build._settle(out)
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "only copy"]
