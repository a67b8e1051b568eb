"""Temporary files of a check: none is left, however the process ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dynbench.gate.git import commit_of, git
from dynbench.gate.scratch import scratch_folder
from dynbench.scratch import remove_abandoned
from tests.gate.repositories import repository

SLOW_GIT = """#!/bin/sh
for word in "$@"; do
    if [ "$word" = read-tree ]; then
        for i in 1 2 3 4 5 6; do mkdir -p "$GIT_WORK_TREE/$i"; sleep 0.1; done
    fi
done
exec {git} "$@"
"""
CHECKS_OUT = """
import sys
from pathlib import Path
from dynbench.gate.checkout import check_out
from dynbench.gate.scratch import scratch_folder
with scratch_folder() as scratch:
    print(scratch, flush=True)
    check_out(Path(sys.argv[1]), sys.argv[2], scratch / "repo")
    print("checked out", flush=True)
    sys.stdin.read()
"""


def until(true: Callable[[], object], seconds: float = 20.0) -> bool:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not true():
        time.sleep(0.05)
    return bool(true())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def test_it_is_removed_at_the_end_and_after_an_error(temporary: Path) -> None:
    with scratch_folder() as folder:
        (folder / "deep").mkdir()
        assert list(temporary.iterdir()) == [folder]
    assert list(temporary.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), scratch_folder():
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_signal_to_the_process_alone_leaves_a_folder_or_a_registration(
    number: signal.Signals, temporary: Path, tmp_path: Path
) -> None:
    root = repository(tmp_path / "repo", {"a": "1"})
    before = sorted(str(p) for p in (root / ".git").rglob("*"))
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(SLOW_GIT.format(git=shutil.which("git")))
    slow.chmod(0o755)
    environment = {**os.environ, "PATH": f"{slow.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", CHECKS_OUT, str(root), commit_of(root, "HEAD")]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        assert until(lambda: (folder / "repo" / "2").is_dir())  # git is writing
        child.send_signal(number)
        assert child.wait(20) != 0
    assert until(lambda: not folder.exists())
    time.sleep(1.5)  # longer than git goes on: it may make the folder again, and it is removed again
    assert until(lambda: list(temporary.iterdir()) == [])
    assert sorted(str(p) for p in (root / ".git").rglob("*")) == before and "\n" not in git(root, "worktree", "list")


def test_where_the_janitor_is_killed_as_well_the_next_start_cleans_up(temporary: Path, tmp_path: Path) -> None:
    root = repository(tmp_path / "repo", {"a": "1"})
    command = [sys.executable, "-c", CHECKS_OUT, str(root), commit_of(root, "HEAD")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip())
        assert child.stdout.readline() == "checked out\n"
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        for pid in [*map(int, children), child.pid]:
            os.kill(pid, signal.SIGKILL)
    assert (folder / "repo" / "a").is_file()
    remove_abandoned(temporary)
    assert list(temporary.iterdir()) == []
