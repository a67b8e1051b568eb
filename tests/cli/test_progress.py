"""What a run says of a finished group, and while there is no answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dynbench.cli.progress import Terminal
from dynbench.experiment import manager, run
from dynbench.launch import ProcessLost
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


class Clock:
    """Time that passes only where something waits for it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


class Mute:
    """A measuring process, and its launcher: it tells which arm runs, and then nothing more."""

    name = "mute"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: list[dict[str, Any]] = [{"event": "ready"}, {"event": "arm", "name": "masking/eager"}]

    def start(self, module: str, **_: object) -> Mute:
        return self

    def send(self, message: object) -> None: ...

    def receive(self, timeout_s: float) -> dict[str, Any]:
        if self._events:
            return self._events.pop(0)
        self._clock.now_s += timeout_s
        raise ProcessLost("silent")

    def close(self, grace_s: float = 0.0) -> int:
        return 0


def test_who_does_not_answer_and_for_how_long_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock = Clock()
    monkeypatch.setattr(manager, "time", clock)
    worker = manager.Worker(1, 50.0, cast(Any, Mute(clock)))
    shown = []

    def follow(event: dict[str, Any]) -> None:
        run._follow(terminal, GROUP, event)
        terminal._progress.refresh()
        shown.append(capsys.readouterr().err)

    with Terminal() as terminal, pytest.raises(manager.WorkerDied, match="no progress for 50 s"):
        worker.ask({"do": "measure"}, "measured", follow)
    assert len(shown) == 3  # the arm, and two times that there is no answer
    assert "no answer from masking/eager for 20 s" in shown[1] and "for 40 s" not in shown[1]
    assert "no answer from masking/eager for 40 s" in shown[2]
