"""The folder of a check's temporary files: gone soon after the check, and at the next start, however it ended."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dynbench.errors import UserError
from dynbench.scratch import make_scratch

KIND = "check"

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
    """An empty folder; removed at the end, also if this process is killed.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder = make_scratch(KIND).resolve()
    except OSError as e:
        raise UserError(f"cannot make a folder for temporary files (TMPDIR): {e.strerror or e}") from e
    janitor = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _JANITOR, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder.parent,
        start_new_session=True,
    )
    with janitor:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
