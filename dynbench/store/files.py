"""Writing files so that a crash leaves the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from dynbench.errors import UserError


def make_folder(path: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        UserError: it cannot be made, or not be written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _cannot(path, e) from e
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: Permission denied")


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a file beside `path`, syncs it, and renames it to `path`.

    Raises:
        UserError: the folder is not writable, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        write(aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as e:
        raise _cannot(path, e) from e
    finally:
        with contextlib.suppress(OSError):  # renamed, or never there
            aside.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step.

    Raises:
        UserError: the folder is not writable, or the disk is full.
    """

    def write(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8")

    write_aside(path, write)


def append_line(path: Path, line: str) -> None:
    """Adds a line and waits until it is on the disk.

    Raises:
        UserError: the file is not writable, or the disk is full.
    """
    try:
        new = not path.exists()
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")  # in one write: a crash can only cut it short
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
    except OSError as e:
        raise _cannot(path, e) from e


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _cannot(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {path}: {error.strerror or error}")
