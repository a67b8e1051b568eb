"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dynbench.cli import main
from dynbench.store.run import Run
from dynbench.strategies import STRATEGIES
from tests.cli import call
from tests.networks import FOR_WEIGHTS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def files() -> dict[str, str]:
    """The files that the README shows, by the name in their first line."""
    return {text.split()[1]: text for language, text in BLOCKS if language in ("python", "toml")}


def test_the_own_early_exit_network_runs_under_every_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files().items():
        Path(name).write_text(text, encoding="utf-8")
    assert list(files()) == ["my_net.py", "my_net.toml"]
    assert sum(bool(line.strip()) for text in files().values() for line in text.splitlines()) < 25
    quick = ("--time-limit", "0.3", "--precision", "50", "--batch", "1", "--decisions", "synthetic")
    result = call("run", "my_net.toml", *quick, "--out", "out")
    assert result.exit_code == 0, result.output
    cells = Run.open(Path("out")).cells
    assert {c.name for c in cells if c.status == "ok"} >= set(STRATEGIES) - set(FOR_WEIGHTS)
    assert not [c for c in cells if c.status == "failed"]
    half = next(c for c in cells if c.name == "cascading")
    assert half.ideal is not None and half.ideal > 1.2
    assert "My early-exit network" in Path("out/report.md").read_text(encoding="utf-8")


def test_every_command_in_a_shell_block_is_one_that_exists() -> None:
    lines = [
        line
        for language, text in BLOCKS
        if language == "sh"
        for line in text.splitlines()
        if line.startswith("dynbench ")
    ]
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        main.commands[words[0]].make_context(words[0], words[1:])


def test_the_table_of_commands_is_complete() -> None:
    assert re.findall(r"^\| `dynbench (\w+)", README, re.MULTILINE) == list(main.commands)
