"""The GitHub Action: its steps are run here as a runner would, but for the installation."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def test_every_input_is_described_and_every_expression_names_an_input() -> None:
    assert all(i["description"] for i in ACTION["inputs"].values())
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"inputs\.(\w+)", text))
    assert used == set(ACTION["inputs"])
    for step in ACTION["runs"]["steps"]:  # what a user gives reaches the shell by the environment, never as its text
        assert "${{" not in step["run"] and step["shell"] == "bash"


def test_the_base_of_a_shallow_clone_is_fetched(tmp_path: Path) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    script = (
        f"git init -q -b main {origin} && cd {origin} && git config user.email a@b.c && git config user.name a && "
        "echo 1 > a && git add a && git commit -qm 1 && git checkout -qb change && echo 2 > a && git commit -qam 2 && "
        f"git clone -q --depth=1 --branch change file://{origin} {clone}"
    )
    subprocess.run(["bash", "-ec", script], check=True, capture_output=True)
    (fetch,) = (s["run"] for s in ACTION["runs"]["steps"] if s["name"] == "Fetch the base")
    env = {**os.environ, "BASE": "origin/main"}
    for _ in range(2):  # the second time there is nothing to fetch
        subprocess.run(["bash", "-ec", fetch], check=True, capture_output=True, cwd=clone, env=env)
    shown = subprocess.run(["git", "show", "origin/main:a"], check=True, capture_output=True, text=True, cwd=clone)
    assert shown.stdout == "1\n"
