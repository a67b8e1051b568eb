"""Processes here are started as those of users are."""

from __future__ import annotations

import subprocess

import pytest

from dynbench.launch import local


@pytest.fixture(autouse=True)
def no_zygote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what `tests.zygote.forks` does."""
    monkeypatch.setattr(local, "subprocess", subprocess)
