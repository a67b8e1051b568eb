"""Which packages that dynbench needs are not there: a machine with a GPU may have no network to install them from."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
INSTEAD = {"onnxruntime": "onnxruntime-gpu"}
TESTS = ("pytest", "hypothesis")


def missing(pyproject: Path = PYPROJECT) -> list[str]:
    """Requirements that are not met, such as "pydantic>=2.8 (there is none)"."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    of_tests = [r for r in project["optional-dependencies"]["dev"] if Requirement(r).name in TESTS]
    found = []
    for text in (*project["dependencies"], *of_tests):
        needed = Requirement(text)
        have = _version(needed.name) or _version(INSTEAD.get(needed.name, needed.name))
        if have is None or not needed.specifier.contains(have, prereleases=True):
            found.append(f"{text} ({'there is none' if have is None else f'there is {have}'})")
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
