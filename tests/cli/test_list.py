"""`dynbench list`: the table and the JSON."""

from __future__ import annotations

import json

import pytest

from dynbench.data import INPUTS
from dynbench.engines import ENGINES, Eager
from dynbench.experiment import DEFAULT_SUITE
from dynbench.models import MODELS
from dynbench.paths import project_dir
from dynbench.strategies import STRATEGIES
from tests.cli import call


def test_json_lists_everything_by_kind() -> None:
    found = json.loads(call("list", "--json").stdout)
    names = {kind: [row["name"] for row in rows] for kind, rows in found.items()}
    assert list(names) == ["workloads", "models", "strategies", "engines", "inputs", "devices", "targets"]
    assert set(names["workloads"]) == {f.stem for f in project_dir("workloads").glob("*.toml")}
    assert names["models"] == list(MODELS)
    assert names["strategies"] == list(STRATEGIES)
    assert names["engines"] == list(ENGINES)
    assert names["inputs"] == list(INPUTS)
    assert {row["name"] for row in found["workloads"] if row["default"]} == set(DEFAULT_SUITE)
    assert names["targets"] == sorted(f.stem for f in project_dir("hardware").glob("targets/*.toml"))
    assert found["devices"][0] == {"name": "cpu", "available": True, "why_not": None}


@pytest.mark.parametrize("kind", ["workloads", "models", "strategies", "engines", "inputs", "devices", "targets"])
def test_one_kind_is_listed_alone(kind: str) -> None:
    rows = json.loads(call("list", kind, "--json").stdout)
    table = call("list", kind).stdout
    assert all(row["name"] in table for row in rows)
    assert all(row.get("what", "x") and row.get("paper", "x") for row in rows)


def test_a_model_is_listed_with_its_decision_points_and_the_weights_that_come_along() -> None:
    rows = {row["name"]: row for row in json.loads(call("list", "models", "--json").stdout)}
    assert rows["skipnet"]["decision_points"] == "17 Skip"
    assert "skipnet38_digits" in rows["skipnet"]["trained"].split(", ")
    assert rows["resnet"]["decision_points"] == "none"
    assert all(row["paper"] and row["provenance"] for row in rows.values())


def test_an_engine_that_the_cpu_cannot_run_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "nowhere", Nowhere())
    rows = {row["name"]: row for row in json.loads(call("list", "engines", "--json").stdout)}
    assert rows["eager"]["on_cpu"] is True and rows["eager"]["why_not"] is None
    assert rows["nowhere"] == {
        "name": "nowhere",
        "what": "Runs on no device.",
        "on_cpu": False,
        "why_not": "it does not run on cpu",
    }


class Nowhere(Eager):
    """Runs on no device."""

    def refuses(self, device: str) -> str | None:
        return f"it does not run on {device}"


def test_a_model_that_cannot_be_built_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "broken", "tests.cli.test_list:broken")
    (row,) = (r for r in json.loads(call("list", "models", "--json").stdout) if r["name"] == "broken")
    assert row["decision_points"] == "n/a: there is no camera"


def broken() -> None:
    raise RuntimeError("there is no camera")
