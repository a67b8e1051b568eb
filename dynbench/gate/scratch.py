"""The folder of a check's temporary files: gone when the check ends, and at the next start however it ended.

The name of a folder says who made it, so that there is no moment at which it belongs to nobody: the process-id
namespace, the process id, and when that process started, which tells it from a later one with the same id.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dynbench.errors import UserError

PREFIX = "dynbench-check-"

# Waits for the end of its standard input, which comes however its parent ends, and removes the folder, until for a
# while nobody has made it again: the parent's other children end for the same reason, but may still be writing.
_JANITOR = """
import os, shutil, sys, time
sys.stdin.read()
quiet = 0
deadline = time.monotonic() + 60
while time.monotonic() < deadline and (os.path.lexists(sys.argv[1]) or 0 < quiet < 20):
    quiet = 1 if os.path.lexists(sys.argv[1]) else quiet + 1
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.1)
"""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder; removed at the end, also if this process is killed. Those of dead processes are removed first.

    Raises:
        UserError: it cannot be made.
    """
    owner = _identity(os.getpid())
    try:
        where = Path(tempfile.gettempdir())
        remove_leftovers(where)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX + (f"{owner}-" if owner else ""), dir=where)).resolve()
    except OSError as e:
        raise UserError(f"cannot make a folder for temporary files (TMPDIR): {e.strerror or e}") from e
    janitor = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _JANITOR, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=where,
        start_new_session=True,
    )
    with janitor:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(where: Path) -> None:
    """Removes the folders of processes that have ended; those of other namespaces cannot be judged and stay."""
    for folder in where.glob(f"{PREFIX}*"):
        namespace, pid, *rest = [*folder.name.removeprefix(PREFIX).split("-"), ""]
        known = len(rest) == 3 and pid.isdecimal() and namespace == _namespace()
        if known and _identity(int(pid)) != f"{namespace}-{pid}-{rest[0]}":
            shutil.rmtree(folder, ignore_errors=True)


def _identity(pid: int) -> str | None:
    """'4026531836-1234-567890': of a process that runs; None: it does not, or this system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # proc(5): the name before may hold anything
    return None if state in "ZXx" else f"{_namespace()}-{pid}-{fields[18]}"


def _namespace() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)
