"""What a run says of a finished group."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dynbench.cli.progress import Terminal
from dynbench.store.schema import Cell
from tests.analysis.cells import baseline, cell
from tests.analysis.test_deployed import FASTER, SLOWER, dynamic, static

GROUP: Any = SimpleNamespace(workload="skipnet38", label="learned", batch_size=32)


def told(capsys: pytest.CaptureFixture[str], cells: list[Cell]) -> str:
    with Terminal() as terminal:
        terminal.finished(cast(Any, GROUP), cells)
    return capsys.readouterr().err


def test_deployed_speedups_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell("compaction", FASTER), cell("cascading", status="refused"), baseline(), dynamic(SLOWER), static()]
    said = "deployed 0.80x (compaction as one ONNX Runtime graph), compaction 1.20x, cascading refused"
    assert f"skipnet38, learned, batch 32: {said}\n" in told(capsys, cells)


def test_without_deployed_cells_there_are_those_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert "batch 32: compaction 1.20x\n" in told(capsys, [cell("compaction", FASTER), baseline()])
    assert "batch 32: nothing measured\n" in told(capsys, [baseline()])
