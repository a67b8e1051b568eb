"""Symbolic links that somebody planted where a command writes, and a watch on how files are opened there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MINE = "this is mine"
_WATCHES: list[Watch] = []


@dataclass
class Watch:
    """Files that were opened for writing below a folder.

    Attributes:
        folder: the resolved folder.
        following: those of which a symbolic link would have been followed.
    """

    folder: str
    following: list[str] = field(default_factory=list)

    def see(self, path: object, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):  # an open descriptor
            return
        parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        inside = f"{os.path.realpath(parent)}/".startswith(f"{self.folder}/")
        safe = flags & os.O_EXCL or flags & os.O_NOFOLLOW
        if inside and flags & (os.O_WRONLY | os.O_RDWR) and not safe:
            self.following.append(name)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _WATCHES:
        path, _, flags = arguments
        for watch in _WATCHES:
            watch.see(path, flags if isinstance(flags, int) else 0)


@contextmanager
def watched(folder: Path) -> Iterator[Watch]:
    """Watches what this process opens below a folder; what C++ opens is not seen."""
    if not getattr(_hook, "added", False):  # a hook cannot be removed
        sys.addaudithook(_hook)
        _hook.added = True  # type: ignore[attr-defined]
    watch = Watch(os.path.realpath(folder))
    _WATCHES.append(watch)
    try:
        yield watch
    finally:
        _WATCHES.remove(watch)


def names_beside(name: str) -> list[str]:
    """A file, and the names under which programs usually write it before it is complete; relative."""
    file = Path(name)
    return [name, *(str(file.with_name(n.format(file.name))) for n in ("{}.part", ".{}.part", "{}.tmp", ".{}.tmp"))]


@dataclass(frozen=True)
class Target:
    """What a link leads to.

    Attributes:
        path: of it.
        content: a file's; None: there is nothing, or an empty folder.
        folder: whether it is one.
    """

    path: Path
    content: bytes | None
    folder: bool = False

    @property
    def touched(self) -> bool:
        """Whether something was written, made or removed through the link."""
        if self.folder:
            return not self.path.is_dir() or any(self.path.iterdir())
        if self.content is None:
            return self.path.exists()
        return not self.path.is_file() or self.path.read_bytes() != self.content


def plant(out: Path, names: list[str], yours: Path, *, there: bool) -> dict[str, Target]:
    """Puts links to files into an output folder, also in the place of files that are there: these move to `yours`.

    Args:
        out: made if it is not there.
        names: of the links, relative.
        yours: a new folder for what the links lead to.
        there: whether the other files exist that the links lead to.
    """
    targets = {}
    yours.mkdir(parents=True)
    for number, name in enumerate(dict.fromkeys(names)):
        target, link = yours / str(number), out / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.exists():
            link.replace(target)
        elif there:
            target.write_text(MINE)
        link.symlink_to(target)
        targets[name] = Target(target, target.read_bytes() if target.exists() else None)
    return targets


def plant_folder(out: Path, name: str, yours: Path) -> dict[str, Target]:
    """Puts a link to an empty folder into an output folder, in the place of what is there."""
    yours.mkdir(parents=True)
    link = out / name
    if link.is_dir():
        shutil.rmtree(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(yours)
    return {name: Target(yours, None, folder=True)}
