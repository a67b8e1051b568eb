"""The code blocks of Markdown pages, and trying them out in a folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.cli import call

ROOT = Path(__file__).parents[2]
SHORT = ("--time-limit", "0.2", "--precision", "50", "--decisions", "synthetic")  # to see that it works, not how fast
Block = tuple[str, str]  # language, text


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def file_name(block: Block) -> str | None:
    """The file that a block shows: Python and TOML name theirs in the first line, `# my_net.py`."""
    language, text = block
    named = re.match(r"# (\S+\.(?:py|toml))\n", text)
    return named[1] if named and language in ("python", "toml") else None


def commands(block: Block) -> list[list[str]]:
    """The arguments of each `dynbench` command of a shell block."""
    language, text = block
    lines = text.splitlines() if language == "sh" else []
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dynbench ")]


def try_out(block: Block, folder: Path) -> None:
    """Writes the file that a block shows, runs its commands, or executes it as a program.

    Measurements are cut short.

    Args:
        block: of a page.
        folder: the working folder.
    """
    language, text = block
    if name := file_name(block):
        (folder / name).write_text(text, encoding="utf-8")
    elif language == "python":
        done = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for words in commands(block):
        done = call(*words, *(SHORT if words[0] == "run" else ()))
        assert done.exit_code == 0, f"dynbench {shlex.join(words)}\n{done.output}"
