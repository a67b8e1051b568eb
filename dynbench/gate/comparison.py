"""Who is compared with whom: the three participants of a check, and where their source comes from."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynbench.errors import UserError
from dynbench.escape import terminal
from dynbench.experiment.spec import Options, Workload, part_reference
from dynbench.gate.checkout import BaseTree, check_out, take_rest
from dynbench.gate.git import commit_of, top_level
from dynbench.gate.revisions import Revision
from dynbench.gate.scratch import scratch_folder
from dynbench.gate.trees import LOCKS, CannotTell, dependencies_differ, environment_of, first_party
from dynbench.names import STRATEGY_NAMES
from dynbench.store.schema import Warning_

Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        revisions: what the head is compared with, the head, and the former again.
        root: of the head's source.
        scratch: folder for files that the processes write.
        base: what the head is compared with, in words.
        doubts: what speaks against the comparison.
        note: what else is to be known of it; None: nothing.
    """

    revisions: list[Revision]
    root: Path
    scratch: Path
    base: str
    doubts: list[Warning_]
    note: str | None = None


@contextlib.contextmanager
def with_base(
    spec: Workload, options: Options, revision: str, same_environment: bool, say: Say
) -> Iterator[Comparison]:
    """The dynamic network in the working tree and in a revision.

    Args:
        spec: the workload in the working tree.
        options: of the run.
        revision: the base.
        same_environment: do not install other dependencies for the base.
        say: called with sentences about the progress.

    Raises:
        UserError: the workload lies in no repository, or there is no such revision.
        CannotTell: the base cannot be measured.
    """
    root = top_level(spec.file.parent)
    if not spec.file.is_relative_to(root):
        raise UserError(f"{spec.file} does not lie in the repository {root}")
    commit = commit_of(root, revision)
    with scratch_folder() as scratch, contextlib.ExitStack() as stack:
        tree = scratch / root.name
        base, python = _base(root, commit, revision, tree, same_environment, say)
        file = tree / spec.file.relative_to(root)
        if not file.is_file():
            raise CannotTell(f"{revision} has no {spec.file.relative_to(root)}: there is nothing to compare with")
        names = first_party(tree, root)

        def start(name: str, python: str, source: Path) -> Revision:
            request = {
                "file": str(source / spec.file.relative_to(root)),
                "options": _options(options, root, source),
                "tree": str(source),
                "names": names,
                "static": False,
                "stream_file": str(scratch / f"{name}.npz"),
            }
            started = Revision(name, python, source, options.threads, scratch, request)
            stack.callback(started.close)
            return started

        where = [("base", python, tree), ("head", sys.executable, root), ("base", python, tree)]
        revisions = [start(*place) for place in where]
        try:
            in_full = f"{terminal(revision)} ({commit[:8]})"
            yield Comparison(revisions, root, scratch, in_full, base.doubts, base.note)
        except CannotTell as e:
            raise CannotTell(_explained(str(e), base, revision)) from e


def _base(root: Path, commit: str, revision: str, tree: Path, same_environment: bool, say: Say) -> tuple[BaseTree, str]:
    """The source of the base, complete, and the interpreter that has its dependencies.

    Raises:
        CannotTell: one of them cannot be made.
    """
    python = sys.executable
    try:
        base = check_out(root, commit, tree)
        if not same_environment and (differ := dependencies_differ(tree, root)):
            say(f"{', '.join(differ)} differ: an environment for the base (cached)")
            python = str(environment_of(tree))
            base.doubts += [_lock_ignored(name) for name in differ if name in LOCKS]
        take_rest(base, root)
    except (OSError, UserError) as e:
        raise CannotTell(f"{revision} cannot be checked out: {e}") from e
    if base.note:
        say(base.note)
    return base, python


@contextlib.contextmanager
def with_static(spec: Workload, options: Options, base: str) -> Iterator[Comparison]:
    """The dynamic network and its primary baseline, both of the working tree.

    Args:
        spec: the workload.
        options: of the run.
        base: what the head is compared with through the static network, in words.
    """
    root = _root_or_folder(spec.file)
    with scratch_folder() as scratch, contextlib.ExitStack() as stack:

        def start(name: str, static: bool) -> Revision:
            request = {
                "file": spec.reference,
                "options": _options(options, root, root),
                "tree": str(root),
                "names": first_party(root),
                "static": static,
                "stream_file": str(scratch / "head.npz"),
            }
            started = Revision(name, sys.executable, root, options.threads, scratch, request)
            stack.callback(started.close)
            return started

        participants = [("its static baseline", True), ("head", False), ("its static baseline", True)]
        yield Comparison([start(*who) for who in participants], root, scratch, terminal(base), [])


def _explained(text: str, base: BaseTree, revision: str) -> str:
    """Why a check of a base has no outcome, without the names of temporary files, and with what the base lacks."""
    tree = re.escape(str(base.path))
    paths = re.findall(rf"{tree}/([^\s'\":;,]+)|No such file or directory: '([^'/][^']*)'", text)
    lacking = [name for names in paths for name in names if name and not (base.path / name).exists()]
    said = [re.sub(rf"{tree}/", f"{revision}:", text)]
    said += [
        f"git has no {name} in {revision}, and the working tree has none that could be taken: "
        "put it there, as for the head, or commit it"
        for name in dict.fromkeys(lacking)
    ]
    if text.startswith("base: "):
        said += [f"{doubt.text}: {doubt.remedy}" for doubt in base.doubts]
    return "; ".join(said)


def _options(options: Options, root: Path, tree: Path) -> dict[str, Any]:
    """Options for the processes of a tree; strategies of the user's own that lie in the repository are the tree's."""
    strategies = options.strategies
    if strategies is not None:
        strategies = [_in_tree(part_reference("strategy", s, STRATEGY_NAMES), root, tree) for s in strategies]
    return options.model_copy(update={"strategies": strategies}).model_dump(mode="json")


def _in_tree(reference: str, root: Path, tree: Path) -> str:
    file, colon, name = reference.rpartition(":")
    if not (colon and Path(file).is_relative_to(root)):
        return reference
    return f"{tree / Path(file).relative_to(root)}:{name}"


def _lock_ignored(name: str) -> Warning_:
    return Warning_(
        id="DB-LOCK-01",
        text=f"{name} differs, and is not followed: what only it pins is as on the head",
        remedy="pin in requirements.txt or constraints.txt what matters for time",
    )


def _root_or_folder(file: Path) -> Path:
    try:
        return top_level(file.parent)
    except UserError:
        return file.parent


def in_words(root: Path, commit: str | None, dirty: bool) -> str:
    """'4f2a91c0' or '4f2a91c0 with changes'."""
    if commit is None:
        return f"the files in {terminal(root.name)}"
    return commit[:8] + " with changes" * dirty
