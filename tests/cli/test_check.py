"""`dynbench check`: exit codes, and where the summary goes; that it measures is tested in tests/gate."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from dynbench.gate import check as gate_check
from dynbench.gate.git import git
from dynbench.gate.trees import CannotTell
from dynbench.report.gate import to_markdown
from dynbench.store.gate import CellCheck, Gate
from dynbench.store.history import History
from tests.cli import TINY, call
from tests.cli.test_bad_input import refused
from tests.report.made_up_gate import ANSWERS, cell, gate

Finds = Callable[..., dict[str, Any]]


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Finds:
    """Lets every check find these cells; returns what it was asked for."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def find(*cells: CellCheck) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def check(workload: str, options: Any, **rest: Any) -> Gate:
            asked.update(rest, options=options)
            return gate(*cells)

        monkeypatch.setattr(gate_check, "check", check)
        return asked

    return find


@pytest.mark.parametrize(
    ("found", "code"), [(cell(), 0), (cell("SLOWER", 1.1), 1), (cell("SAME", 1.0, ANSWERS), 1), (cell("AMBIGUOUS"), 3)]
)
def test_the_verdict_is_the_exit_code_and_is_recorded(
    finds: Finds, found: CellCheck, code: int, tmp_path: Path
) -> None:
    asked = finds(found)
    result = call("check", TINY, "--base", "main", "--matters", "5", "--accept", "work", "--history", tmp_path / "h")
    assert result.exit_code == code and result.stdout == to_markdown(gate(found))
    assert (asked["base"], asked["matters"], asked["accept"], asked["seconds"]) == ("main", 0.05, ["work"], 60.0)
    assert [c.gate for c in History.open(str(tmp_path / "h")).checks()] == [gate(found)]


def test_the_summary_goes_where_it_is_asked_for(finds: Finds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finds(cell("SLOWER", 1.1))
    page = tmp_path / "page.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    names = ("markdown", "junit", "json", "bencher", "github-action-benchmark")
    files = {name: tmp_path / "deep" / name for name in names}
    result = call("check", TINY, "--base", "main", *(x for name in names for x in (f"--{name}", files[name])))
    assert result.exit_code == 1
    summary = to_markdown(gate(cell("SLOWER", 1.1)))
    assert page.read_text() == "before\n" + summary and files["markdown"].read_text() == summary
    assert ElementTree.parse(files["junit"]).getroot().get("failures") == "1"
    assert Gate.model_validate_json(files["json"].read_text()) == gate(cell("SLOWER", 1.1))
    assert all(json.loads(files[name].read_text()) for name in ("bencher", "github-action-benchmark"))


def test_a_history_that_breaks_leaves_the_verdict(
    finds: Finds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "h.sqlite"
    for found, code in ((cell(), 2), (cell("SLOWER", 1.1), 1), (cell("AMBIGUOUS"), 3)):
        finds(found)
        inner = gate_check.check

        def check(*args: Any, inner: Any = inner, **rest: Any) -> Gate:
            file.write_text("while it was measured, somebody wrote over the database")
            return inner(*args, **rest)  # type: ignore[no-any-return]

        monkeypatch.setattr(gate_check, "check", check)
        file.unlink(missing_ok=True)
        result = call("check", TINY, "--base", "main", "--history", file)
        assert result.exit_code == code and "is no SQLite database, or is damaged" in result.stderr
        assert result.stdout == to_markdown(gate(found))


@pytest.mark.parametrize(
    ("found", "code"), [(cell(), 2), (cell("SLOWER", 1.1), 1), (cell("AMBIGUOUS"), 3)], ids=["same", "slower", "unsure"]
)
def test_the_verdict_stands_where_nothing_can_be_written(
    finds: Finds, found: CellCheck, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("markdown", "junit", "json", "bencher", "github-action-benchmark")
    files = {name: tmp_path / name / "check" for name in names}
    finds(found)
    inner = gate_check.check

    def check(*args: Any, **rest: Any) -> Gate:
        for file in files.values():
            file.parent.rmdir()  # while it was measured
        return inner(*args, **rest)

    monkeypatch.setattr(gate_check, "check", check)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))  # a folder
    monkeypatch.setattr(History, "record_check", lambda *_: 1 / 0)
    written = (x for name in names for x in (f"--{name}", files[name]))
    result = call("check", TINY, "--base", "main", "--history", tmp_path / "h", *written)
    assert result.exit_code == code and result.stdout == to_markdown(gate(found))
    sentences = result.stderr.splitlines()
    assert len(sentences) == len(names) + 2 and all(line.startswith("Error: ") for line in sentences)
    for said in (*(f"cannot write to {file}" for file in files.values()), str(tmp_path), "ZeroDivisionError"):
        assert said in result.stderr


def test_the_verdict_stands_where_it_cannot_be_printed(finds: Finds, monkeypatch: pytest.MonkeyPatch) -> None:
    finds(cell("SLOWER", 1.1))
    inner = click.echo

    def echo(message: Any = None, *args: Any, **rest: Any) -> None:
        if not rest.get("err"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(message, *args, **rest)

    monkeypatch.setattr("click.echo", echo)
    result = call("check", TINY, "--base", "main")
    assert result.exit_code == 1 and result.stderr == "Error: cannot print the summary: No space left on device\n"


def test_hostile_words_reach_the_terminal_escaped(
    finds: Finds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds()
    hostile = "[/b]\x1b[2J\u202e"

    def check(*_: Any, say: Any, **__: Any) -> Gate:
        say(hostile)
        raise CannotTell(hostile)

    monkeypatch.setattr(gate_check, "check", check)
    result = call("check", TINY, "--base", "main")
    escaped = r"[/b]\x1b[2J\u202e"
    assert result.exit_code == 3 and result.output == f"{escaped}\nCould not tell: {escaped}\n"


def test_bad_use_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but a text that is long enough to be looked at")
    for arguments, said in (
        ([], "give one of --base REVISION"),
        (["--base", "main", "--save", "x"], "give one of --base REVISION"),
        (["--base", "main", "--time", "nan"], "'nan' is not a finite number"),
        (["--base", "main", "--time", "inf"], "'inf' is not a finite number"),
        (["--base", "main", "--matters", "nan"], "'nan' is not a finite number"),
        (["--base", "main", "--threads", "99999999999"], "99999999999 is not in the range"),
        (["--base", "main", "--accept", "all"], "--accept all: what may change is answers, decisions, work"),
        (["--save", tmp_path / "b", "--history", tmp_path / "h"], "--save judges nothing"),
        (["--base", "main", "--history", tmp_path / "text"], "is no SQLite database"),
        (["--base", "main", "--junit", tmp_path / "text" / "check.xml"], f"cannot write to {tmp_path / 'text'}"),
    ):
        assert said in refused("check", TINY, *arguments)


def test_a_real_check_is_named_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "repo"
    shutil.copytree(TINY.parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "-q", "-b", "main", str(root))
    for words in ("config user.email a@b.c", "config user.name a", "add -A", "commit -q -m first"):
        git(root, *words.split())
    result = call(
        "check", root / "tiny.toml", "--base", "main", "--batch", "4", "--time", "5", "--history", tmp_path / "h"
    )
    assert result.exit_code in (0, 3)
    (found,) = History.open(str(tmp_path / "h")).checks()
    assert found.gate.commit == git(root, "rev-parse", "HEAD") and not found.gate.dirty
    assert found.subject == "first" and found.gate.head == found.gate.commit[:8]
