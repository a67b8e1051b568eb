"""The source trees of a check: whose code is imported from them, and what it depends on."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

from dynbench.errors import DynbenchError
from dynbench.launch.local import python_path
from dynbench.paths import cache_dir

DEPENDENCY_FILES = (
    "pyproject.toml",
    "setup.py",
    "setup.cfg",
    "requirements.txt",
    "constraints.txt",
    "uv.lock",
    "poetry.lock",
)
LOCKS = ("uv.lock", "poetry.lock")  # read by their own tools only, which may not be here
INSTALL_S = 1800.0


class CannotTell(DynbenchError):
    """A check has no outcome, for a reason that does not lie in the head."""


def first_party(*trees: Path) -> list[str]:
    """Names under which code of the trees is imported: packages and modules at their top, and under `src`."""
    names = set()
    for tree in trees:
        for folder in (tree, tree / "src"):
            names |= {p.parent.name for p in folder.glob("*/__init__.py")}
            names |= {p.stem for p in folder.glob("*.py")}
    return sorted(names - {"setup", "conftest"})


def dependencies_differ(base: Path, head: Path) -> list[str]:
    """Names of the files that do not ask for the same dependencies in both trees."""
    return [name for name in DEPENDENCY_FILES if _wanted(base / name) != _wanted(head / name)]


def _wanted(file: Path) -> Any:
    """What a file asks for: its whole content, of pyproject.toml only what is about dependencies."""
    if not file.is_file():
        return None
    content = file.read_bytes()
    if file.name != "pyproject.toml":
        return content.hex()
    try:
        table = tomllib.loads(content.decode())
        project, tools = table.get("project", {}), table.get("tool", {})
        return [
            [table.get(k) for k in ("build-system", "dependency-groups")],
            [project.get(k) for k in ("dependencies", "optional-dependencies", "dynamic", "requires-python")],
            [tools.get("poetry", {}).get(k) for k in ("dependencies", "group", "extras")],
            tools.get("setuptools", {}).get("dynamic"),
        ]
    except (ValueError, AttributeError):  # no TOML, or no pyproject.toml
        return content.hex()


def environment_of(tree: Path) -> Path:
    """The interpreter of an environment with the tree's dependencies: this one's packages, and over them its own.

    It is made once for the same dependencies and kept in the cache. Lock files are not followed.

    Raises:
        CannotTell: it cannot be made.
    """
    key = hashlib.sha256(sys.version.encode() + sys.prefix.encode())
    key.update(json.dumps([_wanted(tree / name) for name in DEPENDENCY_FILES], default=str).encode())
    folder = cache_dir() / "environments" / key.hexdigest()[:16]
    python = folder / "bin" / "python"
    if (folder / "made").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _quiet([sys.executable, "-m", "venv", str(folder)])
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        wanted = [str(tree)] if any((tree / n).is_file() for n in ("pyproject.toml", "setup.py")) else []
        if (tree / "requirements.txt").is_file():
            wanted += ["-r", str(tree / "requirements.txt")]
        if wanted and (tree / "constraints.txt").is_file():
            wanted += ["-c", str(tree / "constraints.txt")]
        if wanted:
            _quiet([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
    except (OSError, subprocess.SubprocessError) as e:
        words = (str(getattr(e, "stderr", "") or e).strip().splitlines() or ["no reason given"])[-1]
        raise CannotTell(
            f"the base has other dependencies than the head, and an environment for it cannot be made: {words}"
        ) from e
    (folder / "made").touch()
    return python


def _quiet(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)


def source_path(tree: Path) -> str:
    """PYTHONPATH of a revision's processes: their own source first, then this dynbench."""
    return python_path(*([tree / "src", tree] if (tree / "src").is_dir() else [tree]))
