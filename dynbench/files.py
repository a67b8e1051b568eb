"""Writing files so that a crash leaves the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dynbench.errors import UserError
from dynbench.scratch import owned, remove_abandoned

_ASIDE = ".dynbench-{}.part"  # with a name that says whose it is


def make_folder(path: Path) -> None:
    """Makes a folder and its parents.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _cannot(path, e) from e
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: Permission denied")


def make_place(path: Path) -> None:
    """Makes the folder of a file that is to be written later, so that what can be refused is refused now.

    Raises:
        UserError: the folder cannot be made or written to, or a folder, pipe or device is where the file is to be.
    """
    make_folder(path.parent)
    _refuse_special(path)


def make_own_folder(path: Path) -> None:
    """Makes a folder in one that somebody else may have prepared: a symbolic link to another place is not followed.

    Raises:
        UserError: it is one, or the folder cannot be made or written to.
    """
    if path.is_symlink():
        raise UserError(f"cannot write to {path}: it is a symbolic link")
    make_folder(path)


@contextlib.contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file beside `path` that replaces it, synced, when the block ends; an exception leaves `path` alone.

    The new file has a random name and never is one that exists already. A symbolic link at `path` is itself replaced;
    its target is left alone. What processes that were killed left beside it is removed first.

    Raises:
        UserError: a folder, pipe or device is there, the folder around it is not writable, or the disk is full.
    """
    _refuse_special(path)
    aside = path.with_name(f".{owned('aside')}{secrets.token_hex(8)}.part")
    try:
        remove_abandoned(path.parent)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as e:
        raise _cannot(path, e) from e
    finally:
        with contextlib.suppress(OSError):  # renamed, or never created
            aside.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in one step.

    Raises:
        UserError: the folder is not writable, or the disk is full.
    """
    with write_aside(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    r"""Writes a text file in UTF-8 in one step; what a path has that is not UTF-8 is written `\udcff`, as in JSON.

    Raises:
        UserError: the folder is not writable, or the disk is full.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def remove_leftovers(folder: Path, *, deep: bool = True) -> None:
    """Removes what `write_aside` left in a folder, which is not being written to, when its process was killed.

    Args:
        folder: where.
        deep: below it, too.
    """
    for file in (folder.rglob if deep else folder.glob)(_ASIDE.format("*")):
        with contextlib.suppress(OSError):
            file.unlink()


def append_line(path: Path, line: str) -> None:
    """Adds a line and waits until it is on the disk.

    Raises:
        UserError: the file is a link, no ordinary file or not writable, or the disk is full.
    """
    append_text(path, line + "\n")


def append_text(path: Path, text: str) -> None:
    """Adds a text to a file, which may be new, and waits until it is on the disk.

    Raises:
        UserError: the file is a link, no ordinary file or not writable, or the disk is full.
    """
    try:
        new = not path.exists()
        with os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(text.encode(errors="backslashreplace"))  # in one write: a crash can only cut it short
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
    except OSError as e:
        raise _cannot(path, e) from e


def open_own(path: Path, flags: int) -> int:
    """A descriptor of an ordinary file that has this one name; made if it is not there. Never waits.

    Raises:
        OSError: a link (symbolic, or a second name of another file), pipe or device is there, or it cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:  # 0: removed in this moment
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EPERM, "it is a link or no ordinary file")


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refuse_special(path: Path) -> None:
    """Raises where a folder, pipe or device is, or in a folder of such: nothing can be put in its place.

    Raises:
        UserError: what is there.
    """
    try:
        special = path.exists() and not path.is_file()
        parent = os.path.realpath(path.parent)
    except (OSError, ValueError) as e:  # a loop of symbolic links; a name with a null character
        raise UserError(f"cannot write to {path}: {getattr(e, 'strerror', None) or e}") from e
    if special or parent == "/dev" or f"{parent}/".startswith(("/proc/", "/sys/")):
        raise UserError(f"cannot write to {path}: it is {'a folder' if path.is_dir() else 'no ordinary file'}")


def _cannot(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {path}: {error.strerror or error}")
