"""`make` reports in one sentence what the machine lacks, and installs only once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELL_TOOLS = ("sh", "make", "sed", "cat", "touch")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that `make` reads, and a folder of tools to run it with."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in SHELL_TOOLS:
        (tools / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def make(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make` with no tools but those of the checkout."""
    env = {"PATH": str(checkout / "tools")}  # without the variables of a surrounding `make test`
    return subprocess.run(["make", *words], cwd=checkout, env=env, capture_output=True, text=True)


def tool(checkout: Path, name: str, script: str) -> None:
    """Puts a tool into the checkout's folder of tools."""
    file = checkout / "tools" / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def refusal(checkout: Path, *words: str) -> str:
    """The sentence with which `make run` fails."""
    done = make(checkout, "run", *words)
    assert done.returncode != 0
    (sentence,) = (line for line in done.stderr.splitlines() if not line.startswith("make"))
    assert not (checkout / ".venv").exists()
    return sentence


def python(checkout: Path, options: str = "") -> None:
    """Puts this Python into the checkout's tools, and git."""
    tool(checkout, "python3", f'exec {sys.executable} {options} "$@"')
    tool(checkout, "git", "exit 0")


def test_a_missing_python_is_reported(checkout: Path) -> None:
    assert refusal(checkout) == (
        "dynbench: there is no python3; Python 3.11 or newer is needed (apt install python3 python3-venv)"
    )


def test_a_python_that_is_too_old_is_reported(checkout: Path) -> None:
    tool(checkout, "python3", 'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac')
    assert "Python 3.9.2 is too old: Python 3.11 or newer is needed" in refusal(checkout)


def test_a_missing_venv_module_is_reported(checkout: Path) -> None:
    tool(checkout, "python3", 'case "$*" in *ensurepip*) exit 1;; *) exit 0;; esac')
    assert refusal(checkout) == "dynbench: Python's venv module is missing (apt install python3-venv)"


def test_a_missing_git_is_reported(checkout: Path) -> None:
    python(checkout)
    (checkout / "tools" / "git").unlink()
    assert "git is missing" in refusal(checkout)


def test_a_torch_that_is_to_be_kept_but_is_not_there_is_reported(checkout: Path) -> None:
    python(checkout, options="-S")  # without the site's packages
    assert "cannot import torch" in refusal(checkout, "SYSTEM_TORCH=1")


def test_a_second_call_installs_nothing(checkout: Path) -> None:
    python(checkout)
    assert "pip install" in make(checkout, "-n", "test").stdout
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "installed").touch()
    for target in ("run", "test", "lint", "report", "bench"):
        assert "pip" not in make(checkout, "-n", target).stdout
    later = time.time() + 10
    os.utime(checkout / "pyproject.toml", (later, later))
    assert "pip install" in make(checkout, "-n", "test").stdout
