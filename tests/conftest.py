"""What all tests share: reproducible draws, one thread, and which tests may be skipped where.

In CI (`DYNBENCH_CI=1`, set by .ci/run) a skipped test is a failed one, unless it needs a GPU: what the others need,
CI installs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests import zygote

CI = os.environ.get("DYNBENCH_CI") == "1"
LONGEST = (
    *("gate/test_check.py", "project/test_packaging.py", "faults/test_kills.py", "faults/test_runs.py"),
    *("project/test_docs.py", "training/test_going_on.py", "experiment/test_ways.py", "experiment/test_run.py"),
    *("cli/test_run.py", "models/test_published_table.py"),
)
"""Files that come first: when all others are given out, no worker has to wait long for one of them."""

settings.register_profile("dynbench", derandomize=True, deadline=None, max_examples=20, database=None)
settings.load_profile("dynbench")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell: tests that interrupt need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def processes_are_forked() -> Iterator[None]:
    """Processes of dynbench need no imports; not in `tests/launch`."""
    with zygote.forks():
        yield


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch report that there is no CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the longest files to the front, and skips tests marked `cuda` where torch finds no GPU."""
    items.sort(key=lambda item: not item.nodeid.partition("::")[0].endswith(LONGEST))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, fails a test that was skipped for another reason than a missing GPU."""
    report = yield
    if CI and not item.get_closest_marker("cuda") and not hasattr(report, "wasxfail"):
        _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI, fails a module that was skipped as a whole."""
    report = yield
    if CI:
        _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: Any) -> None:
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"In CI only tests that need a GPU may be skipped. {reason}"
