"""What follows from the cells of a check."""

from __future__ import annotations

import pytest

from dynbench.store.gate import CellCheck
from tests.report.made_up_gate import ANSWERS, LESS, cell, gate


@pytest.mark.parametrize(
    ("cells", "code", "said"),
    [
        ([cell()], 0, "No regression."),
        ([cell("FASTER", 0.9)], 0, "No regression; faster: compaction, batch 32."),
        ([cell(), cell("SLOWER", 1.1)], 1, "Regression: slower: compaction, batch 32."),
        ([cell("AMBIGUOUS", 1.03)], 3, "Could not tell: compaction, batch 32."),
        ([cell("AMBIGUOUS", 1.03), cell("SLOWER", 1.1)], 1, "Regression: slower: compaction, batch 32."),
        ([cell("SAME", 1.0, ANSWERS)], 1, "Regression: answers differ: by up to 0.3."),
        ([cell("SAME", 1.0, LESS)], 0, "No regression."),
    ],
)
def test_the_exit_code_and_the_sentence_follow_from_the_cells(cells: list[CellCheck], code: int, said: str) -> None:
    found = gate(*cells)
    assert (found.exit_code, found.sentence) == (code, said)
