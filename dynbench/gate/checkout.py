"""The source of the base: what git has of a commit, completed by what git alone does not have.

A commit is written into a folder that is a small repository of its own and borrows the objects of the user's: nothing
is registered there, so nothing can be left behind there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dynbench.errors import UserError
from dynbench.escape import terminal
from dynbench.gate.git import git, names
from dynbench.store.schema import Warning_

# Never taken from the head's tree: environments, and what its own code and tools keep there.
LEFT_OUT = {
    "__pycache__",
    ".git",
    ".hypothesis",
    ".idea",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".nox",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
    ".venv",
    ".vscode",
    "node_modules",
    "venv",
}
COMPILED = (".so", ".pyd", ".dylib")
CODE = (".py", *COMPILED)  # copied, so that it is imported from the base's own tree; other files are linked
CHANGES = (".py", ".toml")  # where git does not ignore such a file, it belongs to a change that is not committed yet
SHOWN = 6
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*oid sha256:([0-9a-f]{64})\nsize \d+\n")
_POINTER_BYTES = 1024  # no pointer is longer


@dataclass
class BaseTree:
    """The source of a revision.

    Attributes:
        path: of its folder.
        taken: what comes from the head's tree, because git does not have it; names of folders end in '/'.
        doubts: what it lacks, and how that can be put right.
    """

    path: Path
    taken: list[str] = field(default_factory=list)
    doubts: list[Warning_] = field(default_factory=list)

    @property
    def note(self) -> str | None:
        """What was taken, in a sentence; None: nothing."""
        if not self.taken:
            return None
        more = f" and {len(self.taken) - SHOWN} more" if len(self.taken) > SHOWN else ""
        shown = ", ".join(map(terminal, self.taken[:SHOWN]))
        return f"the base uses the working tree's {shown}{more}, which git does not have"

    def lacks(self, text: str, remedy: str) -> None:
        """Notes that something could not be had."""
        doubt = Warning_(id="DB-BASE-01", text=f"the base lacks {terminal(text)}", remedy=terminal(remedy))
        self.doubts.append(doubt)


def check_out(head: Path, commit: str, tree: Path) -> BaseTree:
    """Writes a commit into a folder, with its submodules and the content of its Git LFS files.

    No hook and no filter of git is run. Submodules come from those of the head, or are fetched; the content of LFS
    files comes from the head's tree, if it is the same, or from git's own store.

    Args:
        head: the repository, or its submodule: the top of the working tree.
        commit: of it.
        tree: the new folder.

    Raises:
        OSError, UserError: it cannot be written.
    """
    base = BaseTree(tree)
    _write(head, commit, tree)
    entries = _entries(tree)
    for path, name in _filtered(head, tree):
        _without_filter(base, head, path, name, commit, entries[path][1])
    for path, (mode, inner) in entries.items():
        if mode == "160000":
            _submodule(base, head, path, inner)
    return base


def take_rest(base: BaseTree, head: Path) -> None:
    """Takes what git does not have from the head's tree: ignored files, and others but for code.

    Code that is not ignored is a change that was not committed yet. Folders are linked as a whole; what the base has
    itself stays.

    Raises:
        OSError: a link or a copy cannot be made.
        UserError: git fails.
    """
    listing = ("ls-files", "-z", "--others", "--exclude-standard", "--directory")
    for name in names(git(head, *listing, "--ignored")):
        _take(base, head, PurePosixPath(name), ignored=True)
    for name in names(git(head, *listing, "--no-empty-directory")):
        _take(base, head, PurePosixPath(name), ignored=False)
    if compiled := [name for name in base.taken if name.endswith(COMPILED)]:
        text = f"compiled code is the head's on both sides: {', '.join(map(terminal, compiled[:SHOWN]))}"
        base.doubts.append(Warning_(id="DB-BASE-02", text=text, remedy="have it built when it is imported"))


def _write(head: Path, commit: str, tree: Path) -> None:
    """A repository that borrows the objects of the head's, and its working tree."""

    def place(name: str) -> Path:
        return Path(git(head, "rev-parse", "--path-format=absolute", "--git-path", name))

    own = tree / ".git"
    form = git(head, "rev-parse", "--show-object-format")
    git(head, "init", "--quiet", "--template=", f"--object-format={form}", str(tree))
    (own / "objects" / "info").mkdir(exist_ok=True)
    (own / "objects" / "info" / "alternates").write_bytes(os.fsencode(place("objects")) + b"\n")
    if place("shallow").is_file():
        shutil.copy(place("shallow"), own / "shallow")
    if tags := git(head, "for-each-ref", "--format=%(objectname) %(refname)", "refs/tags"):
        (own / "packed-refs").write_bytes(os.fsencode(tags) + b"\n")  # versions are often made from them
    git(head, "read-tree", "-m", "-u", commit, settings=_no_filters(head), environment=_across(head, tree))
    git(tree, "update-ref", "--no-deref", "HEAD", commit)


def _across(head: Path, tree: Path) -> dict[str, str]:
    """Lets git work on the tree with the head's repository, which knows how to fetch objects that are not here yet."""
    git_dir = git(head, "rev-parse", "--absolute-git-dir")
    return {"GIT_DIR": git_dir, "GIT_WORK_TREE": str(tree), "GIT_INDEX_FILE": str(tree / ".git" / "index")}


def _no_filters(head: Path) -> dict[str, str]:
    """Settings under which git writes files as it stores them."""
    keys = ""
    with contextlib.suppress(UserError):  # there are none
        keys = git(head, "config", "--null", "--name-only", "--get-regexp", r"^filter\..*\.(smudge|process|required)$")
    return {key: "false" if key.endswith(".required") else "" for key in names(keys)}


def _entries(tree: Path) -> dict[str, tuple[str, str]]:
    """By path: mode and object id of what git has there."""
    rows = (row.partition("\t") for row in names(git(tree, "ls-files", "--stage", "-z")))
    return {path: (about.split()[0], about.split()[1]) for about, _, path in rows}


def _filtered(head: Path, tree: Path) -> Iterator[tuple[str, str]]:
    """Files that git stores in another form than they have in a working tree: path and name of the filter."""
    found = git(
        head,
        *("check-attr", "-z", "--stdin", "filter"),
        environment=_across(head, tree),
        given=git(tree, "ls-files", "-z"),
    ).split("\0")
    for path, _, name in zip(found[0::3], found[1::3], found[2::3], strict=False):
        if name not in ("unspecified", "unset", "set") and (tree / path).is_file():
            yield path, name


def _without_filter(base: BaseTree, head: Path, path: str, name: str, commit: str, blob: str) -> None:
    """Gives a file the content that its filter would give it."""
    target, here = base.path / path, head / path
    if name == "lfs":
        if (digest := _pointed_at(target)) is None:
            return
        stored = Path(git(head, "rev-parse", "--path-format=absolute", "--git-common-dir"), "lfs", "objects")
        for source in (here, stored / digest[:2] / digest[2:4] / digest):
            if source.is_file() and _sha256(source) == digest:
                _put(source, target)
                base.taken += [path] if source == here else []  # the store has what belongs to the base
                return
        fetch = shlex.join(["git", "lfs", "fetch", "--include", path, "--", "origin", commit])
        base.lacks(f"the content of {path}, which Git LFS keeps and which is not in this clone", f"fetch it: {fetch}")
    elif _runs(head, name):
        if here.is_file() and _object_of(head, path) == blob:
            _put(here, target)
            base.taken.append(path)
        else:
            text = f"the content of {path}: the filter {name!r} of git is not run for it"
            base.lacks(text, f"leave {path} as it is in the base, or keep it outside of git")


def _object_of(head: Path, path: str) -> str:
    """The object id of a file in the head's index; empty: it is not there."""
    about, _, _ = git(head, "ls-files", "--stage", "--", f":(literal){path}").partition("\t")
    return about.split()[1] if about else ""


def _runs(head: Path, name: str) -> bool:
    """Whether a filter is set up to change files when they are checked out."""
    with contextlib.suppress(UserError):  # it is not set up
        pattern = rf"^filter\.{re.escape(name)}\.(smudge|process)$"
        rows = names(git(head, "config", "--null", "--get-regexp", pattern))
        return any(row.partition("\n")[2] not in ("", "cat") for row in rows)
    return False


def _pointed_at(file: Path) -> str | None:
    """The SHA-256 of what a pointer file of Git LFS stands for; None: it is none."""
    with file.open("rb") as opened:
        found = _POINTER.match(opened.read(_POINTER_BYTES))
    return found and found[1].decode()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _submodule(base: BaseTree, head: Path, path: str, commit: str) -> None:
    """Checks out a submodule of the base; one that the head has not initialised either is not needed."""
    here, tree = head / path, base.path / path
    initialised = (here / ".git").exists()
    if not initialised and _object_of(head, path):
        return
    try:
        if initialised and _has(here, commit):
            inner = check_out(here, commit, tree)
            take_rest(inner, here)
            base.taken += [f"{path}/{name}" for name in inner.taken]
            base.doubts += inner.doubts
            return
        with contextlib.suppress(UserError):  # relative addresses of submodules start there
            git(base.path, "config", "remote.origin.url", git(head, "config", "--get", "remote.origin.url"))
        update = ("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1", "--", path)
        git(base.path, *update, settings=_no_filters(head))
    except UserError as e:
        fetch = ["git", "-C", path, "fetch", "--", "origin", commit] if initialised else ["git", "submodule", "update"]
        base.lacks(f"the submodule {path} at {commit[:8]} ({e})", f"fetch it before the check: {shlex.join(fetch)}")


def _has(repository: Path, commit: str) -> bool:
    with contextlib.suppress(UserError):
        git(repository, "cat-file", "-e", f"{commit}^{{commit}}")
        return True
    return False


def _take(base: BaseTree, head: Path, name: PurePosixPath, *, ignored: bool) -> None:
    """Takes a file or a folder of the head's tree into the base, unless the base has it itself."""
    source, target = head / name, base.path / name
    if name.name in LEFT_OUT or name.suffix == ".pyc" or (source / "pyvenv.cfg").is_file():
        return
    if name.suffix in CHANGES and not ignored:
        return
    if source.is_dir() and not source.is_symlink() and (target.is_dir() or _holds_code(source)):
        for child in sorted(source.iterdir()):
            _take(base, head, name / child.name, ignored=ignored)
        return
    inside = target.parent.resolve().is_relative_to(base.path.resolve())
    if inside and source.exists() and not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _put(source, target)
        base.taken.append(f"{name}/" if source.is_dir() else str(name))


def _holds_code(folder: Path) -> bool:
    return any(child.suffix in CODE for child in folder.iterdir())


def _put(source: Path, target: Path) -> None:
    """Lets `target` be what `source` is."""
    target.unlink(missing_ok=True)
    if source.suffix in CODE and source.is_file():
        shutil.copy2(source, target)
    else:
        target.symlink_to(source)
