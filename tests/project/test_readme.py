"""What the README shows works literally."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynbench.cli import main
from dynbench.store.run import Run
from tests.cli import call
from tests.project.pages import ROOT, SHORT, blocks, commands, file_name

README = ROOT / "README.md"
BLOCKS = blocks(README)
FILES = {name: text for language, text in BLOCKS if (name := file_name((language, text)))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the files that the README shows."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_own_early_exit_network_runs_under_every_strategy_that_applies(folder: Path) -> None:
    assert list(FILES) == ["my_net.py", "my_net.toml"]
    assert sum(bool(line.strip()) for text in FILES.values() for line in text.splitlines()) < 25
    result = call("run", "my_net.toml", *SHORT, "--batch", "1", "--out", "out")
    assert result.exit_code == 0, result.output
    cells = Run.open(folder / "out").cells
    measured = {c.arm.strategy for c in cells if c.status == "ok" and c.arm.kind == "strategy"}
    assert measured >= {"masking", "compaction", "cascading", "per_sample"}
    assert not [c for c in cells if c.status == "failed"]
    half = next(c for c in cells if c.arm.strategy == "cascading")
    assert half.ideal is not None and half.ideal > 1.2
    assert "My early-exit network" in (folder / "out" / "report.md").read_text(encoding="utf-8")


def test_the_python_example_prints_a_table_of_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (text for language, text in BLOCKS if language == "python" and "import dynbench\n" in text)
    assert len(code.strip().splitlines()) <= 5
    exec(compile(code, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert "cascading" in printed and "latency_item_ms" in printed


def test_every_command_in_a_shell_block_is_one_that_exists() -> None:
    lines = [words for block in BLOCKS for words in commands(block)]
    assert lines
    for name, *arguments in lines:
        main.commands[name].make_context(name, arguments)


def test_the_table_of_commands_is_complete() -> None:
    text = README.read_text(encoding="utf-8")
    assert re.findall(r"^\| `dynbench (\w+)", text, re.MULTILINE) == list(main.commands)
