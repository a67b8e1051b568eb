"""`dynbench run --target`: which names are devices, and what means nothing there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dynbench.deploy.run
from dynbench.deploy.run import Devices
from dynbench.experiment import Options, Plan
from dynbench.experiment import Result as Outcome
from dynbench.store.run import Run
from tests.cli import TINY, call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "this-machin"), "unknown target 'this-machin'; did you mean this-machine"),
        (("--target", "nowhere.toml"), "nowhere.toml"),
        (("--target", "this-machine", "--target", "local"), "--target local is where the measuring process runs"),
        (("--target", "browser", "--target", "mine.py:Own"), "--target mine.py:Own is where the measuring process"),
        (("--target", "browser", "--strategy", "dense"), "--strategy means nothing with --target browser"),
        (("--target", "browser", "--engine", "eager"), "--engine means nothing with --target browser"),
        (("--target", "browser", "--controls", "all"), "--controls means nothing with --target browser"),
        (("--target", "browser", "--dry-run"), "--dry-run means nothing with --target browser"),
        (("--devices", "2"), "--devices is about devices"),
        (("--sustained", "10"), "--sustained is about devices"),
        (("--target", "this-machine", "--devices", "2"), "it needs --target browser"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = call("run", TINY, *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "board.toml").write_text('title = "A board"\n[target]\nkind = "local"\n')
    result = call("run", TINY, "--target", tmp_path / "a/board.toml", "--target", tmp_path / "b/board.toml")
    assert result.exit_code == 2 and "two targets have the same name" in result.output


def test_options_reach_the_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def remember(workloads: list[str], devices: Devices, out: Path, **more: Any) -> Outcome:
        asked.append((workloads, devices, out, more))
        return Outcome(out, Plan([], {}, {}))

    monkeypatch.setattr(dynbench.deploy.run, "run_on_devices", remember)
    monkeypatch.setattr("dynbench.cli.run._conclude", lambda *_, **__: None)
    given = ("--target", "this-machine", "--target", "browser", "--devices", "2", "--sustained", "10", "--seed", "7")
    limits = ("--time-limit", "3", "--precision", "5", "--batch", "1,8", "--threads", "2", "--quiet")
    assert call("run", TINY, *given, *limits, "--out", tmp_path / "run").exit_code == 0
    ((workloads, devices, out, more),) = asked
    assert (workloads, out) == ([str(TINY)], tmp_path / "run")
    assert [(name, p.target.kind) for name, p in devices.targets.items()] == [
        ("this-machine", "local"),
        ("browser", "browser"),
    ]
    assert (devices.browsers, devices.sustained_s) == (2, 10.0)
    assert devices.options == Options(
        batch_sizes=[1, 8], decisions=["learned"], threads=2, time_limit_s=3.0, precision=0.05, seed=7
    )
    assert (more["resume"], more["retry_failed"]) == (False, False)


def test_a_device_is_measured_reported_and_resumed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    board = tmp_path / "board.toml"
    board.write_text('title = "A board"\n[target]\nkind = "local"\n')
    result = call("run", TINY, "--target", board, "--time-limit", "0.05", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert not json.loads(result.stdout)["failed"]
    run = Run.open(out)
    assert {(c.device, c.status) for c in run.cells} == {("board", "ok")}
    assert "On devices" in (out / "report.md").read_text(encoding="utf-8")
    before = (out / "cells.jsonl").read_bytes()
    assert call("run", "--resume", out).exit_code == 0
    assert (out / "cells.jsonl").read_bytes() == before
