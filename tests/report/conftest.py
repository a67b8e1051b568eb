"""The made-up run, written and reported once for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.report.content import Report, build
from dynbench.report.write import FORMATS, write_pages
from dynbench.store.run import Run
from tests.report import made_up


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with three workloads on one page, as each has a page of its own in a report."""
    path = made_up.whole_run(tmp_path_factory.mktemp("report") / "run")
    write_pages(build(Run.open(path)), "report", FORMATS, path)
    return path


@pytest.fixture(scope="session")
def report(run_dir: Path) -> Report:
    """What the report says, as data."""
    return build(Run.open(run_dir))


@pytest.fixture(scope="session")
def html(run_dir: Path) -> str:
    """The page."""
    return (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def markdown(run_dir: Path) -> str:
    """The Markdown."""
    return (run_dir / "report.md").read_text(encoding="utf-8")
