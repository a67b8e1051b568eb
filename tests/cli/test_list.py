"""What there is to choose from."""

from __future__ import annotations

import json

import pytest

from dynbench.experiment import DEFAULT_SUITE
from dynbench.models import MODELS
from dynbench.paths import project_dir
from dynbench.strategies import STRATEGIES
from tests.cli import call


def test_json_lists_everything_by_kind() -> None:
    found = json.loads(call("list", "--json").stdout)
    names = {kind: [row["name"] for row in rows] for kind, rows in found.items()}
    assert list(names) == ["workloads", "models", "strategies", "devices"]
    assert set(names["workloads"]) == {f.stem for f in project_dir("workloads").glob("*.toml")}
    assert names["models"] == list(MODELS)
    assert names["strategies"] == list(STRATEGIES)
    assert {row["name"] for row in found["workloads"] if row["default"]} == set(DEFAULT_SUITE)
    assert found["devices"][0] == {"name": "cpu", "available": True, "why_not": None}


@pytest.mark.parametrize("kind", ["workloads", "models", "strategies", "devices"])
def test_one_kind_is_listed_alone(kind: str) -> None:
    rows = json.loads(call("list", kind, "--json").stdout)
    table = call("list", kind).stdout
    assert all(row["name"] in table for row in rows)
    assert all(row.get("what", "x") and row.get("paper", "x") for row in rows)
