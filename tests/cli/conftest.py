"""A run that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import QUICK, TINY, call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = call("run", TINY, *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    return out
