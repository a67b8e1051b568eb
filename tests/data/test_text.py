"""Text as windows of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynbench.data import load_inputs
from dynbench.data.text import EXCERPT
from dynbench.errors import UserError


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    file = tmp_path / "bytes.txt"
    file.write_bytes(bytes(range(256)) * 4)
    return file


def test_labels_are_the_next_bytes(counting: Path) -> None:
    data = load_inputs("text", "train", context=16, file=counting)
    assert data.inputs.dtype == np.int64 and data.inputs.shape[1] == 16
    assert np.array_equal(data.labels, (data.inputs + 1) % 256)


def test_windows_of_the_three_parts_do_not_overlap(counting: Path) -> None:
    bytes_used = 0
    for split in ("train", "validation", "test"):
        bytes_used += load_inputs("text", split, context=16, file=counting).inputs.size
    assert bytes_used <= 1024
    test = load_inputs("text", "test", context=16, file=counting)
    assert test.inputs[0, 0] == int(0.9 * 1024) % 256


def test_the_seed_moves_the_training_windows_only(counting: Path) -> None:
    def first(split: str, seed: int) -> int:
        return int(load_inputs("text", split, context=16, file=counting, seed=seed).inputs[0, 0])

    assert first("train", 3) == first("train", 0) + 3
    assert first("test", 3) == first("test", 0)


def test_the_excerpt_is_small_and_says_what_it_is() -> None:
    assert EXCERPT.stat().st_size <= 200_000
    assert "Shakespeare" in load_inputs("text", "test", limit=1).description


def test_a_text_too_short_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(UserError, match="9 bytes"):
        load_inputs("text", "test", file=tmp_path / "short.txt")
    with pytest.raises(UserError, match="cannot be read"):
        load_inputs("text", "test", file=tmp_path / "none.txt")
