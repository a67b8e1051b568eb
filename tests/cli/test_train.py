"""`dynbench train` calls the recipe that a workload names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import call

RECIPE = """
import json

def train(session):
    asked = {"name": session.workload["name"], "out": str(session.out), "resume": session.resume}
    (session.out / "asked.json").write_text(json.dumps(asked))
"""
WORKLOAD = """
schema = 1
name = "own"
title = "Own"
model = "own.py:build"
inputs = { name = "digits" }
train = { recipe = "recipe.py:train" }
"""


def test_a_recipe_of_one_s_own_is_run_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "own.toml").write_text(WORKLOAD)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = call("train", tmp_path / "own.toml", "--quiet", "--resume")
    assert result.exit_code == 0, result.output
    asked = json.loads(Path("runs/trained/own/asked.json").read_text())
    assert asked == {"name": "own", "out": "runs/trained/own", "resume": True}
    assert "runs/trained/own" in result.stdout
