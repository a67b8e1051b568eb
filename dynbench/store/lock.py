"""One process at a time writes a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from dynbench.errors import UserError
from dynbench.files import open_own

LOCK = "run.lock"
_TRIES, _PAUSE_S = 5, 0.02  # `is_written` holds the lock for an instant


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing the run in a folder, until the block ends.

    The lock is the kernel's: it ends with the process, however that ends. The file that a killed process leaves is
    taken over. It names its owner, for the message.

    Raises:
        UserError: another process writes there, which is named; or the folder cannot be written.
    """
    file = folder / LOCK
    descriptor = _acquire(file)
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder was removed meanwhile
            file.unlink()
        os.close(descriptor)


def is_written(folder: Path) -> bool:
    """Whether a process holds the lock of a folder: it tells a run that goes on from one whose process was killed.

    Where the file system has no locks, a lock file that is there counts as held.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held, or no locks to be had
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(file: Path) -> int:
    """An open descriptor of the lock file that has the lock."""
    tries = 0
    while True:
        try:
            descriptor = open_own(file, os.O_RDWR)
        except OSError as e:
            raise UserError(f"cannot write to {file.parent}: {e.strerror or e}") from e
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tries += 1
            owner = _owner(descriptor)
            os.close(descriptor)
            if tries < _TRIES:
                time.sleep(_PAUSE_S)
                continue
            raise UserError(f"{file.parent} is being written by {owner}; wait until that run has ended") from None
        except OSError:  # a file system without locks: nothing to be had
            return descriptor
        if _is_still(file, descriptor):
            return descriptor
        os.close(descriptor)  # its owner removed the file between our opening and locking it


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.read(descriptor, 1000))
        return f"process {int(owner['pid'])} on {str(owner['host'])!a}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
