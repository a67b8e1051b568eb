"""Bundles: what is written runs alone and is right; what was changed, or is no bundle, is found in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from dynbench.cli import main
from dynbench.deploy import build
from dynbench.deploy.bundle import Checked, Decided, Manifest, _wrong, check, sha256
from dynbench.errors import UserError
from dynbench.experiment import graphs
from dynbench.graph import compiled_twice

TINY = Path(__file__).parents[1] / "experiment" / "tiny" / "tiny.toml"
ALONE = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "dynbench"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    result = call("compile", TINY, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def manifest(bundle: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return table


def change(bundle: Path, **keys: Any) -> None:
    (bundle / "manifest.json").write_text(json.dumps({**manifest(bundle), **keys}))


def rewrite(bundle: Path, file: str, content: bytes) -> None:
    """Changes a file and corrects its hash, as somebody who wants it to go unnoticed does."""
    (bundle / file).write_bytes(content)
    change(bundle, sha256={**manifest(bundle)["sha256"], file: sha256(content)})


def refused(bundle: Path) -> str:
    """The one sentence with which a check ends, exit code 2."""
    result = call("compile", "--check", bundle)
    assert result.exit_code == 2, result.output
    *_, sentence = result.output.strip().splitlines()
    assert sentence.startswith("Error: ") and "Traceback" not in result.output
    return sentence


# --- what is written ---


def test_a_bundle_holds_graphs_inputs_what_is_right_and_what_proves_it(written: Path) -> None:
    found = Manifest.model_validate_json((written / "manifest.json").read_bytes())
    portable = [g for g in found.graphs if g.optimised_for is None]
    assert [(g.file, g.network, g.single) for g in portable] == [
        ("dynamic.onnx", "dynamic", False),
        ("single.onnx", "dynamic", True),
        ("static.onnx", "plain", False),
    ]
    assert {g.file for g in found.graphs if g.optimised_for} == {
        g.file.replace(".onnx", ".here.onnx") for g in portable
    }
    assert sorted(found.sha256) == sorted(p.name for p in written.iterdir() if p.name != "manifest.json")
    dynamic, single, static = portable
    assert {p.decisions for p in dynamic.proofs} == {"learned", "replayed", "none", "all", "one"}
    assert {p.items for p in dynamic.proofs} == {1, 2, 4, 7} and {p.items for p in single.proofs} == {1}
    assert {p.decisions for p in static.proofs} == {"-"}
    assert {d.point for d in dynamic.decisions} == {"block0", "block1", "exit"}
    assert static.flops_per_item == 2 * (8 * 16 + 16 * 4)
    assert dynamic.flops_per_item == found.required_flops_per_item == pytest.approx(single.flops_per_item)


def test_graphs_have_operators_of_onnx_only(written: Path) -> None:
    def kinds(graph: onnx.GraphProto) -> set[str]:
        inside = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        return {n.domain for n in graph.node}.union(*map(kinds, inside)) if inside else {n.domain for n in graph.node}

    for name in ("dynamic.onnx", "single.onnx", "static.onnx"):
        model = onnx.load(written / name)
        onnx.checker.check_model(model)
        assert kinds(model.graph) <= {"", "ai.onnx"}
        assert model.ir_version == manifest(written)["ir_version"]
        assert {(o.domain, o.version) for o in model.opset_import} == {("", manifest(written)["opset"])}


def test_it_runs_without_torch_and_dynbench(written: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(written / "run.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert "decision:exit/2: " in done.stdout and "0 of them other than expected" in done.stdout


def test_a_run_that_ends_otherwise_says_so(bundle: Path) -> None:
    arrays = dict(np.load(bundle / "expected.npz"))
    arrays["dynamic/answer"] = arrays["dynamic/answer"] + 1
    np.savez(bundle / "expected.npz", **arrays)
    done = subprocess.run([sys.executable, str(bundle / "run.py")], capture_output=True, text=True)
    assert done.returncode == 1 and "DIFFERENT" in done.stderr


def test_a_fresh_bundle_passes(written: Path) -> None:
    result = call("compile", "--check", written)
    assert result.exit_code == 0 and "DIFFERENT" not in result.output
    batches = {(c.file, c.items) for c in check(written)}
    assert {("dynamic.onnx", n) for n in (1, 2, 7, 64)} | {("single.onnx", 1), ("static.here.onnx", 64)} <= batches


# --- what was changed ---


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_is_named(bundle: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(sorted(manifest(bundle)["sha256"])))
    before = (bundle / file).read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    (bundle / file).write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    assert f"{file} was changed" in refused(bundle)
    (bundle / file).write_bytes(before)


def weight(model: onnx.ModelProto) -> None:
    def all_weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
        inside = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        return [*graph.initializer, *(w for g in inside for w in all_weights(g))]

    found = max(all_weights(model.graph), key=lambda w: int(np.prod(w.dims)))
    found.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found) + np.float32(0.5), found.name))


def branches(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "If")
    then, otherwise = node.attribute
    then.name, otherwise.name = otherwise.name, then.name


@pytest.mark.parametrize(
    ("file", "edit"), [("dynamic.onnx", weight), ("static.onnx", weight), ("single.onnx", branches)]
)
def test_a_graph_edited_by_hand_is_found_by_its_answers(
    bundle: Path, file: str, edit: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load(bundle / file)
    edit(model)
    rewrite(bundle, file, model.SerializeToString())
    result = call("compile", "--check", bundle)
    assert result.exit_code == 1, result.output
    assert file in result.output and "otherwise than expected" in result.output


def test_no_number_is_no_pass(bundle: Path) -> None:
    assert not Checked("dynamic.onnx", 1, float("nan"), 0, 0, 1e-4).ok
    arrays = dict(np.load(bundle / "expected.npz"))
    arrays["dynamic/answer"][3] = np.nan
    np.savez(bundle / "expected.npz", **arrays)
    rewrite(bundle, "expected.npz", (bundle / "expected.npz").read_bytes())
    assert "holds NaN" in refused(bundle)


def test_few_decisions_may_differ_by_rounding_but_not_one_in_a_hundred() -> None:
    assert Checked("dynamic.onnx", 64, 0.0, 1000, 10, 1e-4).ok
    assert not Checked("dynamic.onnx", 64, 0.0, 1000, 11, 1e-4).ok
    assert not Checked("dynamic.onnx", 64, 0.0, 64, 1, 1e-4).ok


def test_of_parts_that_are_picked_each_counts_once() -> None:
    table = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    expected = {"decision/pick": table, "reached/pick": np.array([True, True, False])}
    decided = Decided(point="pick", sizes=[], decision="d", items="i", choices=3)

    def wrong(items: list[int], value: list[list[int]]) -> list[int]:
        run = {"d": np.array(value, dtype=table.dtype), "i": np.array(items)}
        manifest = Manifest.model_construct(items=3, tolerance=1e-4)
        return _wrong(decided, [run], expected, 3, manifest).tolist()

    assert wrong([0, 1], [[0, 1, 2], [3, 4, 5]]) == [0, 0, 0]
    assert wrong([0, 1], [[0, 1, 9], [5, 4, 3]]) == [1, 1, 0]  # one other part; another order
    assert wrong([0, 2], [[0, 1, 2], [6, 7, 8]]) == [0, 3, 3]  # one is missing, one is too many
    assert wrong([0, 0], [[0, 1, 2], [0, 1, 2]]) == [3, 3, 3]
    with pytest.raises(UserError, match=r"a row of 'decision/pick' holds \[3\] values, not 2 choices"):
        _wrong(decided.model_copy(update={"choices": 2}), [], expected, 3, Manifest.model_construct(items=3))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"schema_version": 2}, "newer dynbench"),
        ({"schema_version": None}, "no manifest of a bundle"),
        ({"unknown": 1}, "no manifest of a bundle"),
        ({"graphs": []}, "lists no graph"),
        ({"tolerance": 0.5}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"items": 0}, "items"),
        ({"items": 63}, "manifest.json says"),
        ({"input_dtype": "float64"}, "manifest.json says"),
        ({"input_item_shape": [4]}, "manifest.json says"),
        ({"opset": 13}, "has opset 17"),
        ({"sha256": {}}, "no hash of 'inputs.npy'"),
    ],
)
def test_a_manifest_that_is_none_is_refused(bundle: Path, keys: dict[str, Any], reason: str) -> None:
    change(bundle, **keys)
    assert reason in refused(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_table_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert "no manifest of a bundle" in refused(bundle)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ""])
def test_a_file_outside_the_folder_is_not_read(bundle: Path, name: str) -> None:
    (bundle.parent / "x").write_text("x")
    change(bundle, sha256={**manifest(bundle)["sha256"], name: sha256(b"x")})
    assert "no name of a file beside it" in refused(bundle)


def test_a_link_is_not_followed(bundle: Path) -> None:
    elsewhere = bundle.parent / "elsewhere.npy"
    (bundle / "inputs.npy").rename(elsewhere)
    (bundle / "inputs.npy").symlink_to(elsewhere)
    assert "no ordinary file" in refused(bundle)


def test_arrays_that_hold_objects_are_refused(bundle: Path) -> None:
    np.save(bundle / "inputs.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    rewrite(bundle, "inputs.npy", (bundle / "inputs.npy").read_bytes())
    assert "inputs.npy is no array" in refused(bundle)


@pytest.mark.parametrize("file", ["inputs.npy", "expected.npz", "dynamic.onnx"])
def test_files_of_another_kind_are_refused(bundle: Path, file: str) -> None:
    rewrite(bundle, file, b"not what it should be")
    assert file in refused(bundle)


def test_answers_and_decisions_that_are_not_there_are_refused(bundle: Path) -> None:
    arrays = dict(np.load(bundle / "expected.npz"))
    for name, cut in (("dynamic/answer", 5), ("decision/block0", 5), ("reached/exit/2", 5)):
        np.savez(bundle / "expected.npz", **{**arrays, name: arrays[name][:cut]})
        rewrite(bundle, "expected.npz", (bundle / "expected.npz").read_bytes())
        assert f"no {name!r} with" in refused(bundle)


def test_an_older_opset_and_foreign_operators_are_refused(bundle: Path) -> None:
    model = onnx.load(bundle / "static.onnx")
    model.opset_import[0].version = 9
    rewrite(bundle, "static.onnx", model.SerializeToString())
    assert "has opset 9; bundles need 13" in refused(bundle)
    model.opset_import[0].version = 17
    model.opset_import.add(domain="com.example", version=1)
    rewrite(bundle, "static.onnx", model.SerializeToString())
    assert "'com.example'" in refused(bundle)


def test_graphs_of_another_machine_are_not_run(bundle: Path) -> None:
    table = manifest(bundle)
    for graph in table["graphs"]:
        if graph["optimised_for"]:
            graph["optimised_for"]["onnxruntime"] = "0.1"
    change(bundle, graphs=table["graphs"])
    assert {c.file for c in check(bundle)} == {"dynamic.onnx", "single.onnx", "static.onnx"}
    result = call("compile", "--check", bundle)
    assert result.exit_code == 0 and result.output.count("not checked: it is for another kind of machine") == 3


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "no manifest.json" in refused(tmp_path)
    assert "no manifest.json" in refused(tmp_path / "nowhere")


# --- writing ---

REFUSED = """
import numpy as np
import torch
from torch import nn
from dynbench.dynamic import Loop, Pool


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.loop = Loop("steps", self.step, lambda answer, state, k: answer[:, 0] > 0, 2, lambda state, k: state[0])

    def step(self, state, k):
        x, pool = state
        pool.write(x, k)
        return self.layer(x), pool

    def forward(self, x):
        return self.loop((x, Pool.new(len(x), 2, 4, like=x)))


def items(split, seed=0):
    return np.random.default_rng(seed).standard_normal((64, 4)).astype(np.float32)
"""


def test_a_network_that_cannot_be_a_graph_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(REFUSED)
    inputs = 'inputs = { name = "net.py:items" }'
    (tmp_path / "net.toml").write_text(f'schema = 1\nname = "net"\ntitle = "Net"\nmodel = "net.py:Net"\n{inputs}\n')
    result = call("compile", tmp_path / "net.toml", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "a Pool is written in place" in result.output
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".py", ".toml") or p.name == "out") == [
        "net.py",
        "net.toml",
    ]


def test_a_graph_that_answers_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, x: Any, **how: Any) -> Any:
        found = compiled_twice(model, x, **how)
        for graph in found:
            weight(graph.model)
        return found

    monkeypatch.setattr(graphs, "compiled_twice", wrong)
    result = call("compile", TINY, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "than per_sample" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"run_id": "mine"}')
    result = call("compile", TINY, "--out", tmp_path)
    assert result.exit_code == 2 and "holds something else" in result.output
    assert (tmp_path / name).read_text() == '{"run_id": "mine"}'


def test_a_bundle_is_replaced_as_a_whole_or_not_at_all(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}
    write, written = build.write_bytes, []

    def fails(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 4:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_bytes", fails)
        CliRunner().invoke(main, ["compile", str(TINY), "--out", str(bundle)])
    assert len(written) == 4
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before
    (bundle / "run.py").unlink()
    assert call("compile", TINY, "--out", bundle).exit_code == 0
    assert (bundle / "run.py").is_file() and [p.name for p in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give a workload"),
        ([TINY], "give a workload and --out"),
        ([TINY, "--check", "somewhere"], "give no workload"),
        (["no_such_workload", "--out", "somewhere"], "no workload"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[object], reason: str) -> None:
    result = call("compile", *arguments)
    assert result.exit_code == 2 and reason in result.output


def test_a_missing_package_is_named(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install onnx" in refused(written)
