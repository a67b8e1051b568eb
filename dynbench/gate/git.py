"""Git, asked so that nothing is run that a repository brings: no hooks, no filters, no file system monitor."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dynbench.errors import UserError

_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.splitIndex": "false",
    "submodule.recurse": "false",
}
# Set where a hook of git runs the check: they would make every command speak of that hook's repository.
_LOCAL = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)


def git(
    folder: Path,
    *args: str,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    given: str = "",
) -> str:
    """Output of a git command.

    Args:
        folder: where it runs.
        args: of it.
        settings: of git, beside those that keep it from running anything else.
        environment: variables beside the present ones.
        given: its standard input.

    Raises:
        UserError: git is not installed, or fails; the message says why.
    """
    options = [x for key, value in {**_SETTINGS, **(settings or {})}.items() for x in ("-c", f"{key}={value}")]
    present = {key: value for key, value in os.environ.items() if key not in _LOCAL}
    present |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *options, *args],
            input=os.fsencode(given),
            capture_output=True,
            check=False,
            env={**present, **(environment or {})},
        )
    except FileNotFoundError as e:
        raise UserError("git is not installed; a check compares revisions, or use --baseline FILE") from e
    if done.returncode:
        lines = os.fsdecode(done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        words = next((line for line in lines if line.startswith(("fatal: ", "error: "))), lines[-1])
        raise UserError(f"git {args[0]}: {words.removeprefix('fatal: ').removeprefix('error: ')}")
    return os.fsdecode(done.stdout).removesuffix("\n")


def names(listing: str) -> list[str]:
    """What a command with `-z` lists."""
    return [name for name in listing.split("\0") if name]


def top_level(folder: Path) -> Path:
    """The repository that `folder` lies in.

    Raises:
        UserError: it lies in none, or git does not trust it.
    """
    try:
        return Path(git(folder, "rev-parse", "--show-toplevel")).resolve()
    except UserError as e:
        if "dubious ownership" in str(e):
            raise UserError(
                f"{folder.resolve()} lies in a git repository of another user, which git does not trust; "
                "if you do: git config --global --add safe.directory FOLDER-OF-THE-REPOSITORY"
            ) from e
        raise UserError(
            f"{folder.resolve()} lies in no git repository, so there is no base; use --baseline FILE"
        ) from e


def commit_of(root: Path, revision: str) -> str:
    """The commit of a revision.

    Raises:
        UserError: this clone does not have it.
    """
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except UserError as e:
        shallow = git(root, "rev-parse", "--is-shallow-repository") == "true"
        remote, slash, branch = revision.partition("/")
        if slash:
            fetch = shlex.join(["git", "fetch", "--depth=1", "--", remote, f"{branch}:refs/remotes/{revision}"])
        else:
            fetch = "git fetch --deepen=100" if shallow else shlex.join(["git", "fetch", "--", "origin", revision])
        hint = "this clone is shallow and does not have it" if shallow else "this clone does not have it"
        raise UserError(f"base revision {revision!r}: {hint}; fetch it first, such as: {fetch}") from e


def head_of(root: Path) -> tuple[str | None, bool]:
    """The commit of a tree, None if it is in no repository, and whether there are changes to it."""
    try:
        return git(root, "rev-parse", "HEAD"), bool(git(root, "status", "--porcelain", "--untracked-files=no"))
    except UserError:
        return None, False
