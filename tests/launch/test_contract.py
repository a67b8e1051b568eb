"""What every launcher and every process must do.

Held by those that come with dynbench, by one of a user's own, and by the processes that stand for them in other tests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dynbench.launch import LAUNCHERS, PROTOCOL, ForkServer, Launcher, LocalLauncher, Process, ProcessLost
from dynbench.launch import local as local_module
from dynbench.parts import choose
from tests import zygote

MODULE = "tests.launch.obedient"
ROOT = str(Path(__file__).parents[2])
SOON_S, BRIEF_S = 60.0, 0.2

OWN = '''
import os, sys
from dynbench.launch import LocalProcess


class Nice:
    """Gives way to other processes."""

    name = "nice"

    def facts(self):
        return {"nice": 5}

    def start(self, module, *, environment, folder=None):
        return LocalProcess(["nice", "-n", "5", sys.executable, "-m", module], {**os.environ, **environment}, folder)
'''


@pytest.fixture(params=["local", "one's own", "zygote"])
def launcher(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    if request.param == "zygote":
        monkeypatch.setattr(local_module, "subprocess", zygote.Subprocess((MODULE, "no_such_module")))
    return own(tmp_path) if request.param == "one's own" else LAUNCHERS["local"]


def own(folder: Path) -> Launcher:
    (folder / "mine.py").write_text(OWN)
    loaded: Launcher = choose("mine.py:Nice", LAUNCHERS, folder, "a target", PROTOCOL)
    return loaded


def started(launcher: Launcher, folder: Path | None = None, **environment: str) -> Process:
    return launcher.start(MODULE, environment={"PYTHONPATH": ROOT, **environment}, folder=folder)


@pytest.fixture(params=["local", "one's own", "forked", "zygote"])
def process(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    if request.param == "zygote":
        monkeypatch.setattr(local_module, "subprocess", zygote.Subprocess((MODULE,)))
    if request.param == "forked":
        server = ForkServer(LocalLauncher(), [MODULE], environment={"PYTHONPATH": ROOT})
        yield server.fork(f"{MODULE}:serve")
        server.close()
        return
    running = started(own(tmp_path) if request.param == "one's own" else LAUNCHERS["local"])
    yield running
    running.kill()


def asked(process: Process, do: str, **what: Any) -> dict[str, Any]:
    process.send({"do": do, **what})
    return process.receive(SOON_S)


def lost(process: Process, do: str, timeout_s: float = SOON_S, **what: Any) -> ProcessLost:
    process.send({"do": do, **what})
    with pytest.raises(ProcessLost) as caught:
        process.receive(timeout_s)
    return caught.value


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + SOON_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_it_has_a_name_and_facts(launcher: Launcher) -> None:
    assert launcher.name and launcher.facts()


def test_environment_and_folder_are_those_asked_for_before_it_starts(launcher: Launcher, tmp_path: Path) -> None:
    process = started(launcher, tmp_path, OMP_NUM_THREADS="3", MINE="a=b c\n")
    facts = asked(process, "facts", names=["OMP_NUM_THREADS", "MINE", "HOME"])
    assert facts["environment"] == {"OMP_NUM_THREADS": "3", "MINE": "a=b c\n", "HOME": os.environ.get("HOME")}
    assert Path(facts["folder"]) == tmp_path.resolve()
    assert process.close() == 0


def test_last_words_are_known(launcher: Launcher) -> None:
    end = lost(started(launcher), "exit", code=7, words="first line\nout of luck")
    assert (end.cause, end.exit_code, end.last_words) == ("ended", 7, "out of luck")


def test_a_module_that_is_not_there_is_an_end_with_words(launcher: Launcher) -> None:
    with pytest.raises(ProcessLost, match=r"No module named.*no_such_module") as caught:
        launcher.start("no_such_module", environment={}).receive(SOON_S)
    assert caught.value.exit_code == 1


def test_nothing_that_it_started_is_left(launcher: Launcher) -> None:
    process = started(launcher)
    pids = [asked(process, "facts", names=[])["pid"], asked(process, "child")["pid"]]
    assert process.close() == 0
    assert all(is_gone(pid) for pid in pids)


def test_it_answers(process: Process) -> None:
    for what in ("a", {"b": [1.5, None]}, "ä\n" * 200_000):
        assert asked(process, "echo", what=what) == {"echo": what}


def test_a_reply_follows_its_events_in_order(process: Process) -> None:
    process.send({"do": "events", "count": 1000})
    assert [process.receive(SOON_S)["event"] for _ in range(1001)] == [*range(1000), "done"]


def test_what_a_model_prints_or_reads_does_not_disturb(process: Process) -> None:
    assert asked(process, "print") == {"read": ""}
    assert asked(process, "echo", what=1) == {"echo": 1}


def test_an_exit_is_told_with_its_code(process: Process) -> None:
    end = lost(process, "exit", code=7, words="")
    assert (end.cause, end.exit_code, end.ending) == ("ended", 7, "exit code 7")
    again = lost(process, "echo", what=1)
    assert (again.cause, again.exit_code) == ("ended", 7)


def test_a_death_is_told_with_its_signal(process: Process) -> None:
    end = lost(process, "die")
    assert (end.cause, end.exit_code, end.ending) == ("ended", -11, "signal SIGSEGV")


def test_a_hang_is_noticed_and_can_be_ended(process: Process) -> None:
    pid = asked(process, "facts", names=[])["pid"]
    end = lost(process, "hang", timeout_s=BRIEF_S)
    assert (end.cause, end.exit_code) == ("silent", None) and "no answer for 0.2 s" in str(end)
    assert process.close(grace_s=BRIEF_S) == process.kill() == -9
    assert is_gone(pid)


def test_an_answer_that_is_late_is_not_lost(process: Process) -> None:
    process.send({"do": "echo", "what": 1})
    process.send({"do": "echo", "what": 2})
    answers = []
    while len(answers) < 2:
        try:
            answers.append(process.receive(0.0)["echo"])
        except ProcessLost as e:
            assert e.cause == "silent"
    assert answers == [1, 2]


def test_what_is_no_message_is_told(process: Process) -> None:
    assert lost(process, "garble").cause == "garbled"
    with pytest.raises(ProcessLost, match="not a JSON object") as caught:
        process.receive(SOON_S)
    assert caught.value.cause == "garbled"


def test_it_can_be_interrupted(process: Process) -> None:
    assert asked(process, "until interrupted") == {"waiting": True}
    process.interrupt()
    assert process.receive(SOON_S) == {"interrupted": 1}


def test_it_ends_with_its_input(process: Process) -> None:
    pid = asked(process, "facts", names=[])["pid"]
    assert process.close() == process.close() == process.kill() == 0
    assert is_gone(pid)
    assert lost(process, "echo", what=1).exit_code == 0
