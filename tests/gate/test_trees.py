"""Source trees of a check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynbench.gate.revision_worker import foreign_modules
from dynbench.gate.trees import CannotTell, dependencies_differ, environment_of, first_party, source_path


def test_first_party_names_are_those_at_the_top_and_under_src(tmp_path: Path) -> None:
    for file in ("a/__init__.py", "src/b/__init__.py", "src/c.py", "d.py", "docs/x.md", "setup.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert first_party(tmp_path) == ["a", "b", "c", "d"]


def test_a_module_from_elsewhere_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repo"
    (repository / "mine").mkdir(parents=True)
    (repository / "mine" / "__init__.py").touch()
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
