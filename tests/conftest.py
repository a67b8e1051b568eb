"""What all tests share: reproducible draws, one thread, and which tests may be skipped where.

In CI (`DYNBENCH_CI=1`, set by .ci/run) a skipped test is a failed one, unless it needs a GPU: what the others need,
CI installs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest
import torch
from hypothesis import settings

CI = os.environ.get("DYNBENCH_CI") == "1"

settings.register_profile("dynbench", derandomize=True, deadline=None, max_examples=20, database=None)
settings.load_profile("dynbench")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell: tests that interrupt need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch report that there is no CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `cuda` where torch finds no GPU."""
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
