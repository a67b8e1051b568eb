"""Folders for temporary files whose names say who made them, so that a later start removes those of dead processes.

A name holds the process-id namespace, the process id, and when that process started, which tells it from a later one
with the same id. So there is no moment at which a folder belongs to nobody, however its process ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NAMED = re.compile(r"\.?dynbench-[a-z]+-(\d+)-(\d+)-(\d+)-[^-]+")


def make_scratch(kind: str, inside: Path | None = None, *, hidden: bool = False) -> Path:
    """A new, empty folder, which its maker removes. Those of dead processes beside it are removed first.

    Args:
        kind: what it is for: small letters.
        inside: where; None: the system's folder for temporary files.
        hidden: its name begins with a dot.

    Raises:
        OSError: it cannot be made.
    """
    where = Path(tempfile.gettempdir()) if inside is None else inside
    remove_abandoned(where)
    owner = _identity(os.getpid())
    name = f"{'.' * hidden}dynbench-{kind}-{owner}-" if owner else f"{'.' * hidden}dynbench-{kind}-"
    return Path(tempfile.mkdtemp(prefix=name, dir=where))


@contextlib.contextmanager
def scratch(kind: str, inside: Path | None = None) -> Iterator[Path]:
    """The same, removed at the end of the block.

    Raises:
        OSError: it cannot be made.
    """
    folder = make_scratch(kind, inside)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(where: Path | None = None) -> None:
    """Removes the folders of processes that have ended; those of other namespaces cannot be judged and stay.

    Args:
        where: in this folder; None: the system's for temporary files.
    """
    for folder in (Path(tempfile.gettempdir()) if where is None else where).glob("*dynbench-*"):
        if (named := _NAMED.fullmatch(folder.name)) is not None:
            namespace, pid, started = named.groups()
            if namespace == _namespace() and _identity(int(pid)) != f"{namespace}-{pid}-{started}":
                shutil.rmtree(folder, ignore_errors=True)


def _identity(pid: int) -> str | None:
    """'4026531836-1234-567890': of a process that runs; None: it does not, or this system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # proc(5): the name before may hold anything
    return None if state in "ZXx" else f"{_namespace()}-{pid}-{fields[18]}"


def _namespace() -> str | None:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return None
