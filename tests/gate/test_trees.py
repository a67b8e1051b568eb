"""Source trees of a check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.gate.revision_worker import foreign_modules
from dynbench.gate.trees import (
    CannotTell,
    commit_of,
    dependencies_differ,
    environment_of,
    first_party,
    git,
    source_path,
    top_level,
    worktree,
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits; the second one changes a file."""
    root = tmp_path / "repo"
    (root / "mine").mkdir(parents=True)
    git(tmp_path, "init", "-q", "-b", "main", str(root))
    git(root, "config", "user.email", "a@b.c")
    git(root, "config", "user.name", "a")
    for text in ("1", "2"):
        (root / "mine" / "__init__.py").write_text(f"value = {text}\n")
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", text)
    return root


def worktrees(root: Path) -> int:
    return len(git(root, "worktree", "list").splitlines())


def test_a_revision_is_checked_out_beside_the_working_tree_and_gone_afterwards(repository: Path) -> None:
    with worktree(repository, commit_of(repository, "HEAD~1")) as tree:
        assert (tree / "mine" / "__init__.py").read_text() == "value = 1\n"
        assert (repository / "mine" / "__init__.py").read_text() == "value = 2\n"
        assert worktrees(repository) == 2
    assert not tree.parent.exists() and worktrees(repository) == 1


def test_no_worktree_is_left_behind_by_an_error_or_a_kill(repository: Path) -> None:
    commit = commit_of(repository, "HEAD")
    with pytest.raises(RuntimeError), worktree(repository, commit):
        raise RuntimeError
    assert worktrees(repository) == 1
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom dynbench.gate.trees import worktree\n"
        "with worktree(Path(sys.argv[1]), sys.argv[2]) as tree:\n    print(tree, flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(repository), commit], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    tree = Path(child.stdout.readline().strip())
    assert tree.is_dir()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    for _ in range(200):
        if worktrees(repository) == 1 and not tree.parent.exists():
            break
        time.sleep(0.1)
    assert worktrees(repository) == 1 and not tree.parent.exists()


def test_a_detached_head_has_a_base_like_any_other(repository: Path) -> None:
    git(repository, "checkout", "-q", "--detach")
    assert commit_of(repository, "main") == git(repository, "rev-parse", "HEAD")


def test_a_revision_that_is_not_there_is_told_with_how_to_fetch_it(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'origin/next': this clone does not have it.*git fetch --depth=1 origin next"):
        commit_of(repository, "origin/next")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repository}", str(shallow))
    with pytest.raises(UserError, match="this clone is shallow and does not have it"):
        commit_of(shallow, "HEAD~1")
    with pytest.raises(UserError, match=r"lies in no git repository.*--baseline FILE"):
        top_level(tmp_path)


def test_first_party_names_are_those_at_the_top_and_under_src(tmp_path: Path) -> None:
    for file in ("a/__init__.py", "src/b/__init__.py", "src/c.py", "d.py", "docs/x.md", "setup.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert first_party(tmp_path) == ["a", "b", "c", "d"]


def test_a_module_from_elsewhere_is_found_out(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "site" / "mine"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(str(elsewhere.parent))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine  # type: ignore[import-not-found]

    assert mine.value == 3
    (found,) = foreign_modules(str(repository), ["mine"])
    assert found.startswith("mine (") and "site" in found
    assert foreign_modules(str(elsewhere.parent), ["mine"]) == []
    monkeypatch.delitem(sys.modules, "mine")


def test_a_revision_sees_its_own_source_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    (tmp_path / "src").mkdir()
    first, second, third, last = source_path(tmp_path).split(os.pathsep)
    assert (first, second, last) == (str(tmp_path / "src"), str(tmp_path), "/somewhere")
    assert (Path(third) / "dynbench" / "__init__.py").is_file()


def test_other_dependency_files_are_named(tmp_path: Path) -> None:
    for side, text in (("a", "torch==2"), ("b", "torch==3")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "requirements.txt").write_text(text)
        (tmp_path / side / "pyproject.toml").write_text("[project]")
    assert dependencies_differ(tmp_path / "a", tmp_path / "b") == ["requirements.txt"]
    assert dependencies_differ(tmp_path / "a", tmp_path / "a") == []


def test_of_pyproject_only_dependencies_count(tmp_path: Path) -> None:
    text = '[project]\nversion = "1"\ndependencies = ["torch"]\n[tool.ruff]\nline-length = 100\n'
    changes = {
        "same": text,
        "version": text.replace('"1"', '"2"'),
        "style": text.replace("100", "120"),
        "more": text.replace('"torch"', '"torch", "numpy"'),
        "build": text + '[build-system]\nrequires = ["x"]\n',
        "broken": "[project",
        "odd": "project = 1\n",
    }
    for name, content in changes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(content)
    differ = [name for name in changes if dependencies_differ(tmp_path / name, tmp_path / "same")]
    assert differ == ["more", "build", "broken", "odd"]
    assert dependencies_differ(tmp_path / "odd", tmp_path / "odd") == []


def test_a_base_that_asks_for_nothing_has_an_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "constraints.txt").write_text("there-is-no-such-package==1\n")
    python = environment_of(tmp_path)
    code = "import sys, numpy; print(sys.prefix)"
    assert subprocess.check_output([python, "-c", code], text=True).strip() == str(python.parents[1])
    assert environment_of(tmp_path) == python


def test_an_environment_that_cannot_be_made_leaves_the_outcome_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "requirements.txt").write_text("there-is-no-such-package==1\n")
    with pytest.raises(CannotTell, match="an environment for it cannot be made: .*there-is-no-such-package"):
        environment_of(tmp_path)
