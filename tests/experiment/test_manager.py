"""The parent's side of a measuring process, with processes that say what they are told to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dynbench.errors import UserError
from dynbench.experiment import manager
from dynbench.experiment.manager import Worker, WorkerDied
from dynbench.launch import ProcessLost

Script = list[dict[str, Any] | ProcessLost]
READY: dict[str, Any] = {"event": "ready"}
ANSWER: dict[str, Any] = {"event": "measured", "cells": 3}
ARM: dict[str, Any] = {"event": "arm", "name": "baseline:resnet20, folded"}


class Scripted:
    """A process that answers by a script."""

    def __init__(self, script: Script) -> None:
        self.script, self.sent, self.timeouts, self.interrupts, self.closed = script, [], [], 0, 0  # type: ignore[var-annotated]

    def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(message)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        self.timeouts.append(timeout_s)
        said = self.script.pop(0)
        if isinstance(said, ProcessLost):
            raise said
        return said

    def interrupt(self) -> None:
        self.interrupts += 1

    def close(self, grace_s: float = 0.0) -> int:
        self.closed += 1
        return 0

    def kill(self) -> int:
        return self.close()


class Scripts:
    """A launcher of such processes, one script each."""

    name = "scripts"

    def __init__(self, *scripts: Script) -> None:
        self.waiting, self.started, self.environments = list(scripts), [], []  # type: ignore[var-annotated]

    def facts(self) -> dict[str, object]:
        return {}

    def start(self, module: str, *, environment: Mapping[str, str], folder: Path | None = None) -> Scripted:
        assert module == "dynbench.experiment.worker"
        self.environments.append(environment)
        self.started.append(Scripted(self.waiting.pop(0)))
        return self.started[-1]


def test_it_starts_when_it_is_asked_and_events_come_before_the_answer() -> None:
    launcher, events = Scripts([READY, ARM, {"event": "round", "n": 1}, ANSWER, ANSWER]), []  # type: ignore[var-annotated]
    worker = Worker(3, hang_s=7.0, launcher=launcher)
    assert (worker.number, launcher.started) == (-1, [])
    for _ in range(2):
        assert worker.ask({"do": "measure"}, "measured", events.append) == ANSWER
    (process,) = launcher.started
    assert [e["event"] for e in events] == ["arm", "round"]
    assert process.sent == [{"do": "measure"}] * 2 and process.timeouts == pytest.approx([7.0] * 5, abs=1)
    assert launcher.environments[0]["OMP_NUM_THREADS"] == "3" and worker.number == 0
    worker.interrupt()
    worker.kill()
    worker.kill()
    assert (process.interrupts, process.closed) == (1, 1)


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (ProcessLost("ended", exit_code=7), "the measuring process died (exit code 7)"),
        (
            ProcessLost("ended", exit_code=-9),
            "the measuring process died (signal SIGKILL, from outside: by the system for want of memory, or by hand)",
        ),
        (
            ProcessLost("ended", exit_code=1, last_words="no such kernel"),
            "the measuring process died (exit code 1; last words: no such kernel)",
        ),
        (ProcessLost("silent"), "hung: no progress for 7 s"),
        (
            ProcessLost("unreachable", detail="the cable is out"),
            "the measuring process failed: the connection to the process is lost; the cable is out",
        ),
    ],
)
def test_a_process_that_is_lost_is_told_with_its_arm_and_replaced(lost: ProcessLost, reason: str) -> None:
    launcher = Scripts([READY, ARM, lost], [READY, ANSWER])
    worker = Worker(1, hang_s=7.0, launcher=launcher)
    with pytest.raises(WorkerDied) as caught:
        worker.ask({}, "measured", lambda _: None)
    assert (caught.value.reason, caught.value.arm) == (reason, ARM["name"])
    assert launcher.started[0].closed == 1
    assert worker.ask({}, "measured", lambda _: None) == ANSWER
    assert worker.number == 1


def test_silence_is_told_until_it_counts_as_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "SILENCE_S", 1.0)
    now = iter(range(100))
    monkeypatch.setattr(manager.time, "monotonic", lambda: float(next(now)))
    silent, events = ProcessLost("silent"), []  # type: ignore[var-annotated]
    worker = Worker(1, hang_s=50.0, launcher=Scripts([READY, ARM, silent, silent, ANSWER]))
    assert worker.ask({}, "measured", events.append) == ANSWER
    assert [(e["event"], e.get("arm")) for e in events[1:]] == [("silent", ARM["name"])] * 2
    assert events[1]["seconds"] < events[2]["seconds"]


def test_a_request_that_cannot_be_served_leaves_the_process() -> None:
    user, fault = ({"event": "error", "text": "no such thing", "user": u, "where": "net.py:3"} for u in (True, False))
    launcher = Scripts([READY, user, ARM, fault, ANSWER])
    worker = Worker(1, launcher=launcher)
    with pytest.raises(UserError, match="^no such thing$"):
        worker.ask({}, "measured", lambda _: None)
    with pytest.raises(WorkerDied, match=r"^no such thing \(at net.py:3\)$") as caught:
        worker.ask({}, "measured", lambda _: None)
    assert caught.value.arm == ARM["name"]
    assert worker.ask({}, "measured", lambda _: None) == ANSWER
    assert (len(launcher.started), worker.number) == (1, 0)


def test_a_process_that_does_not_start_is_lost_without_an_arm() -> None:
    worker = Worker(1, launcher=Scripts([ProcessLost("ended", exit_code=1, last_words="no torch")]))
    with pytest.raises(WorkerDied, match=r"died \(exit code 1; last words: no torch\)") as caught:
        worker.ask({}, "measured", lambda _: None)
    assert caught.value.arm is None
