"""The command from its first moment: Ctrl-C ends it without a traceback, whatever it was doing."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import NoReturn

import pytest

from dynbench.__main__ import INTERRUPTED, main
from dynbench.gate import check as gate_check
from dynbench.store.run import Run
from tests.cli import TINY, call


class Interrupting(types.ModuleType):
    """A module that is being read while Ctrl-C comes."""

    def __getattr__(self, name: str) -> NoReturn:
        raise KeyboardInterrupt


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def test_while_its_modules_are_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "dynbench.cli", Interrupting("dynbench.cli"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == INTERRUPTED and capsys.readouterr() == ("", "")


def test_while_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "open", interrupt)
    result = call("export", "run")
    assert (result.exit_code, result.stderr, result.stdout) == (INTERRUPTED, "interrupted\n", "")


@pytest.mark.parametrize("args", [("report", ""), ("run", "--out", ""), ("history", "list", "--db", "")])
def test_an_empty_argument_is_refused(args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*args)
    assert result.exit_code == 2 and "an argument is empty" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--save", "--json"])
def test_where_nothing_can_be_written_is_known_before_anything_is_measured(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_check, "check", interrupt)
    base = [] if option == "--save" else ["--base", "main"]
    result = call("check", TINY, *base, option, "/dev/null")
    assert result.exit_code == 2 and "cannot write to /dev/null: it is no ordinary file" in result.stderr


def test_a_full_standard_output_is_told_in_a_sentence() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dynbench", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
        listed = subprocess.run(
            [sys.executable, "-m", "dynbench", "list", "models"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    for ended in (done, listed):
        assert (ended.returncode, ended.stderr) == (2, "Error: cannot write: No space left on device\n")


def test_a_folder_that_was_removed_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = call("compile", TINY, "--out", "bundle")
    assert result.exit_code == 2 and "the current folder was removed" in result.stderr


def test_both_entries_are_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dynbench", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dynbench, version ")
