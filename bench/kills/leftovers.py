"""What is left of a command: processes, files, worktrees."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path


def processes(mark: str) -> dict[int, str]:
    """Command lines of the processes that have `NAME=VALUE` in their environment, by id; the dead do not count."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is somebody else's
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
    return found


def wait_for_processes(mark: str, seconds: float) -> dict[int, str]:
    """Those that are there when none is left, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while (found := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def end_processes(mark: str) -> None:
    """Kills them, as often as needed."""
    while found := processes(mark):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def names(folder: Path) -> list[str]:
    """Everything below a folder, but Python's own caches and the inside of a repository's object store."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(str(path) for path in found if not {"__pycache__", "objects"} & set(path.parts))


def worktrees(repository: Path) -> list[str]:
    """The registered worktrees beside the main one."""
    git = ["git", "-C", str(repository), "worktree", "list", "--porcelain"]
    listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout
    return [line.removeprefix("worktree ") for line in listed.splitlines() if line.startswith("worktree ")][1:]
