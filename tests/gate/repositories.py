"""Small repositories."""

from __future__ import annotations

from pathlib import Path

from dynbench.gate.git import git


def repository(root: Path, *commits: dict[str, str]) -> Path:
    """A repository in a new folder, with a commit for each set of files: path and content."""
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.email", "a@b.c")
    git(root, "config", "user.name", "a")
    for number, files in enumerate(commits):
        for path, content in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
        git(root, "add", "-A")
        git(root, "commit", "-q", "--allow-empty", "-m", str(number))
    return root
