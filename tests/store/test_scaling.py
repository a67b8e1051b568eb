"""The file of scalings: what is written comes back, and damage is a sentence."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.store.scaling import FILE, FORMAT, read_scaling, write_scaling
from tests.analysis.scalings import CONSTANTS, made_up


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    _, scaling = made_up()
    assert read_scaling(tmp_path) == []
    write_scaling(tmp_path, [scaling])
    assert read_scaling(tmp_path) == [scaling]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-20], "not JSON"),
        (lambda text: text.replace(f'"format": {FORMAT}', '"format": 99'), "newer dynbench"),
        (lambda text: text.replace('"operator_us": 1.0', '"operator_us": 0.0'), "above 0"),
        (lambda text: text.replace('"sizes": [1, 2,', '"sizes": [2, 1,', 1), "sizes must ascend"),
        (lambda text: text.replace('"sizes": [1, 2,', '"sizes": [2,', 1), "a time for each size"),
        (lambda text: text.replace('"waits"', '"weights"', 1), "is corrupt"),
        (lambda text: "[1]\n", "is corrupt"),
    ],
)
def test_a_damaged_file_is_a_sentence_with_its_line(tmp_path: Path, damage: object, said: str) -> None:
    _, scaling = made_up()
    path = write_scaling(tmp_path, [scaling])
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError, match=said) as error:
        read_scaling(tmp_path)
    assert f"{FILE}:1" in str(error.value) and "\n" not in str(error.value)


def test_a_number_that_is_none_is_never_written(tmp_path: Path) -> None:
    _, scaling = made_up()
    broken = scaling.model_copy(update={"constants": CONSTANTS.model_copy(update={"wait_us": math.nan})})
    with pytest.raises(ValueError, match="nan"):
        write_scaling(tmp_path, [broken])
    assert not (tmp_path / FILE).exists()
