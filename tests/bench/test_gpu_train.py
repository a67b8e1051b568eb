"""The training on CIFAR-10 that waits for a GPU goes on where a call ended, and says how it compares with papers."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.gpu import train
from bench.gpu.train import PLANS, Plan, Published, finished, go_on, results
from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import load_spec
from dynbench.paths import project_dir

TINY = """schema = 1
name = "tiny_digits"
title = "A small ResNet"
model = "dynbench.models.skipnet:skipnet"
model_args = { depth = 8, gate = "rnn" }
inputs = { name = "digits", options = { size = 16 } }
[train]
recipe = "dynbench.training.skipnet:train"
[train.options]
epochs = 2
items = 256
batch_size = 32
precision = "float32"
"""


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "tiny.toml").write_text(TINY)
    plan = Plan("tiny.toml", {"resnet8_digits": Published(0.05, "nowhere"), "tiny_digits": Published(1.5, "a dream")})
    monkeypatch.setattr(train, "PLANS", (plan,))
    return folder


def test_a_call_goes_on_where_the_last_one_was_ended(tmp_path: Path, plans: Path) -> None:
    out, at_once = tmp_path / "out", tmp_path / "at_once"
    assert go_on(at_once, tmp_path, "cpu", 600, plans)
    calls = 1
    while not go_on(out, tmp_path, "cpu", 0.2 * calls, plans):
        calls += 1
        assert calls < 60
    assert calls > 1
    for name in ("resnet8_digits", "tiny_digits"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (out, at_once))
        assert one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)
    assert not (out / "unfinished").exists()
    before = (out / "tiny_digits.safetensors").stat().st_mtime_ns
    assert go_on(out, tmp_path, "cpu", 600, plans)
    assert (out / "tiny_digits.safetensors").stat().st_mtime_ns == before
    found = list(results(out))
    assert [good for _, good in found] == [True, False]
    assert "within a point of the published 5.00% (nowhere)" in found[0][0]
    assert "more than a point below the published 150.00% (a dream)" in found[1][0]


def test_what_was_ended_while_tidying_up_is_tidied_up(tmp_path: Path, plans: Path) -> None:
    assert go_on(tmp_path / "out", tmp_path, "cpu", 600, plans)
    record = tmp_path / "out" / "unfinished" / "training.json"
    for name, left in (("tiny_digits", False), ("another", True)):
        spec = load_spec(str(plans / "tiny.toml"))
        asked = {**spec.model_dump(mode="json", by_alias=True, exclude_none=True), "name": name}
        keys = ("name", "model", "model_args", "inputs", "baselines", "train")
        asked = {k: asked[k] for k in keys if k in asked} | {"epochs": None, "device": "cpu"}
        record.parent.mkdir()
        record.write_text(json.dumps({"asked": asked, "finished": ["resnet8_digits"], "source": None}))
        assert go_on(tmp_path / "out", tmp_path, "cpu", 600, plans)
        assert record.exists() == left  # what is another training's stays


def test_what_is_not_finished_is_said(tmp_path: Path) -> None:
    (tmp_path / "resnet38_cifar10.json").write_text(json.dumps({"accuracy": 0.99}))
    assert not finished(PLANS[0], tmp_path)
    assert all(line.endswith("not finished") and good for line, good in results(tmp_path))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.file)
def test_a_plan_is_the_network_of_the_workload_of_its_name(plan: Plan) -> None:
    spec = load_spec(str(train.HERE / plan.file))
    assert spec.train is not None and spec.inputs.name == "cifar10" and spec.name in plan.networks
    build_model(spec, spec.folder)
    comes_along = project_dir("workloads") / plan.file
    if comes_along.is_file():
        theirs = tomllib.loads(comes_along.read_text(encoding="utf-8"))
        ours = tomllib.loads((train.HERE / plan.file).read_text(encoding="utf-8"))
        assert all(ours[key] == theirs[key] for key in ("model", "model_args", "inputs", "title"))
        assert ours["train"]["recipe"] == theirs["train"]["recipe"]


@pytest.mark.parametrize(
    ("words", "part"),
    [(("--device", "cuda:99"), "device 'cuda:99' is not available"), (("--minutes", "-1"), "--minutes -1; accepted")],
)
def test_bad_input_is_one_sentence(tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    command = [sys.executable, "-m", "bench.gpu.train", "--out", str(tmp_path / "out"), "--data", str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr
