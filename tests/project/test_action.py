"""The GitHub Action: its steps run here as on a runner; pip is replaced by a program that records its arguments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "experiment" / "tiny"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def test_every_input_is_described_and_every_expression_names_an_input() -> None:
    assert all(i["description"] for i in ACTION["inputs"].values())
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"inputs\.(\w+)", text))
    assert used == set(ACTION["inputs"])
    for step in ACTION["runs"]["steps"]:  # inputs reach the shell as environment variables, never as its text
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


def test_a_base_that_looks_like_an_option_is_a_name(tmp_path: Path) -> None:
    script = f"git init -q -b main {tmp_path} && cd {tmp_path} && git remote add origin {tmp_path}"
    subprocess.run(["bash", "-ec", script], check=True, capture_output=True)
    (fetch,) = (s["run"] for s in ACTION["runs"]["steps"] if s["name"] == "Fetch the base")
    for base in (f"origin/--upload-pack=touch {tmp_path}/was-run;", f"--upload-pack=touch {tmp_path}/was-run;"):
        done = subprocess.run(
            ["bash", "-ec", fetch], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "BASE": base}
        )
        assert done.returncode != 0 and "invalid refspec" in done.stderr
    assert not (tmp_path / "was-run").exists()


def test_all_steps_judge_a_pull_request(tmp_path: Path) -> None:
    origin, clone, bin_ = tmp_path / "origin", tmp_path / "clone", tmp_path / "bin"
    shutil.copytree(TINY, origin, ignore=shutil.ignore_patterns("__pycache__"))
    (origin / "requirements.txt").write_text("\n")
    script = (
        f"cd {origin} && git init -q -b main && git config user.email a@b.c && git config user.name a && "
        "git add -A && git commit -qm 1 && git checkout -qb change && "
        "sed -i 's/x = self.stem(x)/x = self.stem(x) + 0.5/' net.py && git commit -qam 2 && "
        f"git clone -q --depth=1 --branch change file://{origin} {clone}"
    )
    subprocess.run(["bash", "-ec", script], check=True, capture_output=True)
    bin_.mkdir()
    (bin_ / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/python\n')
    (bin_ / "dynbench").write_text(f'#!/bin/sh\nexec {sys.executable} -m dynbench "$@"\n')
    for file in bin_.iterdir():
        file.chmod(0o755)
    given = {
        "workload": "tiny.toml",
        "base": "origin/main",
        "arguments": "--time 5 --batch 4",
        "install": "-r requirements.txt",
    }
    env = {
        **os.environ,
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md"),
        "DYNBENCH_CACHE": str(tmp_path / "cache"),
    }
    codes = []
    for step in ACTION["runs"]["steps"]:
        inputs = {k: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: given[m[1]], v) for k, v in step["env"].items()}
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=clone, env={**env, **inputs})
        codes.append(done.returncode)
    assert codes == [0, 0, 1]  # other answers
    assert (tmp_path / "python").read_text() == f"-m pip install {ROOT} -r requirements.txt\n"
    assert "answers differ: by up to" in (tmp_path / "page.md").read_text()
    assert "answers differ" in (clone / "dynbench-check.xml").read_text()
    assert (clone / "dynbench-check.json").is_file()
