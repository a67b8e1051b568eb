"""Numbers and names on a command line that nobody can mean: one sentence and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.store.history import History
from tests.cli import TINY, call

NAN = ("nan", "inf", "-inf", "1e309")


def refused(*args: object) -> str:
    """The sentence with which a command line is refused."""
    result = call(*args)
    assert result.exit_code == 2, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "Traceback" not in result.output
    return last


@pytest.mark.parametrize("value", NAN)
@pytest.mark.parametrize(
    "args",
    [
        ("run", TINY, "--dry-run", "--time-limit"),
        ("run", TINY, "--dry-run", "--precision"),
        ("run", TINY, "--dry-run", "--hang-s"),
        ("check", TINY, "--base", "main", "--matters"),
        ("check", TINY, "--base", "main", "--time"),
        ("partition", TINY, "--slower"),
    ],
    ids=lambda args: f"{args[0]} {args[-1]}",
)
def test_a_number_that_is_none_is_refused(args: tuple[object, ...], value: str) -> None:
    assert str(args[-1]) in refused(*args, value)


def test_more_threads_than_any_machine_has_are_refused() -> None:
    assert "--threads" in refused("run", TINY, "--dry-run", "--threads", 99999999999)


@pytest.mark.parametrize("command", ["partition", "cost"])
@pytest.mark.parametrize("shape", ["3x99999x99999", "99999999999999999999x3", "0x3", "3x" + "9" * 5000, "3xx3", "-1x3"])
def test_an_input_that_no_memory_holds_is_refused(command: str, shape: str) -> None:
    assert "--input" in refused(command, "skipnet", "--input", shape)


@pytest.mark.parametrize(
    "args",
    [
        ("run", "n\udcff.toml", "--dry-run"),
        ("report", "r\udcff"),
        ("export", "r", "--out", "e\udcff"),
        ("history", "list", "--db", "h\udcff"),
    ],
    ids=lambda args: args[0],
)
def test_a_name_that_is_not_utf_8_is_refused(args: tuple[str, ...]) -> None:
    assert "\\udcff" in refused(*args) and "is not UTF-8" in refused(*args)


def test_a_name_in_any_script_is_no_reason_to_refuse(tmp_path: Path) -> None:
    assert "holds no run" in refused("report", tmp_path / "прогон 走 😀")


def test_a_history_in_memory_is_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    History.open(":memory:", create=True)
    assert (tmp_path / ":memory:").is_file()
    assert call("history", "list", "--db", ":memory:").exit_code == 0
