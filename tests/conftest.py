"""What all tests share: no randomness between runs, one thread, and GPU tests only where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("dynbench", derandomize=True, deadline=None, max_examples=20, database=None)
settings.load_profile("dynbench")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `cuda` where torch finds no GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))
