"""Temporary files and folders whose names say who made them, so that a later start removes those of dead processes.

A name holds where process ids mean the same (this host, this namespace), the process id, and when that process started,
which tells it from a later one with the same id. So there is no moment at which a file belongs to nobody, however its
process ends.
"""

from __future__ import annotations

import contextlib
import hashlib
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
    return Path(tempfile.mkdtemp(prefix="." * hidden + owned(kind), dir=where))


def owned(kind: str) -> str:
    """The beginning of a name of this process's; what follows has no '-'."""
    owner = _identity(os.getpid())
    return f"dynbench-{kind}-{owner}-" if owner else f"dynbench-{kind}-"


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
    """Removes files and folders of processes that have ended; those of other hosts cannot be judged and stay.

    Args:
        where: in this folder; None: the system's for temporary files.
    """
    for path in (Path(tempfile.gettempdir()) if where is None else where).glob("*dynbench-*"):
        if (named := _NAMED.fullmatch(path.name)) is not None:
            namespace, pid, started = named.groups()
            if namespace == _namespace() and _identity(int(pid)) != f"{namespace}-{pid}-{started}":
                _remove(path)


def _remove(path: Path) -> None:
    """Removes a folder or a file; a symbolic link is none of ours."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif not path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink()


def _identity(pid: int) -> str | None:
    """'402653183-1234-567890': of a process that runs; None: it does not, or this system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # proc(5): the name before may hold anything
    return None if state in "ZXx" else f"{_namespace()}-{pid}-{fields[18]}"


def _namespace() -> str | None:
    """A number for where a process id means the same process; a folder may be shared by several hosts."""
    try:
        where = f"{os.uname().nodename} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None
    return str(int.from_bytes(hashlib.sha256(where.encode()).digest()[:4], "big"))
