"""What is particular to processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.launch import LAUNCHERS, PROTOCOL, LocalLauncher, ProcessLost, local, thread_environment
from dynbench.launch.local import python_path
from dynbench.parts import choose
from tests.launch.test_contract import MODULE, ROOT, SOON_S, asked, is_gone


def test_stderr_is_passed_on_or_not(capfd: pytest.CaptureFixture[str]) -> None:
    for show in (True, False):
        process = LocalLauncher(show_stderr=show).start(MODULE, environment={"PYTHONPATH": ROOT})
        process.send({"do": "exit", "code": 0, "words": "hello"})
        with pytest.raises(ProcessLost, match="hello"):
            process.receive(SOON_S)
        assert capfd.readouterr().err == ("hello\n" if show else "")


def test_much_on_stderr_does_not_stop_it() -> None:
    process = LocalLauncher(show_stderr=False).start(MODULE, environment={"PYTHONPATH": ROOT})
    with pytest.raises(ProcessLost) as caught:
        process.send({"do": "exit", "code": 3, "words": "x" * 1_000_000 + "\nlast"})
        process.receive(SOON_S)
    assert (caught.value.exit_code, caught.value.last_words) == (3, "last")


def test_what_it_prints_goes_to_a_log_of_bounded_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LOG_BYTES", 30)
    log = tmp_path / "worker.log"
    for words in ("hello", "x" * 100, "too late"):
        process = LocalLauncher().start(MODULE, environment={"PYTHONPATH": ROOT})
        process.log_to(log)
        process.send({"do": "exit", "code": 3, "words": words})
        with pytest.raises(ProcessLost, match=words):
            process.receive(SOON_S)
    assert log.read_text() == "hello\n" + "x" * 24 + "\n[the rest is left out]\n"
    assert capfd.readouterr().err == ""


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "worker.log").symlink_to(tmp_path / "mine")
    process = LocalLauncher(show_stderr=False).start(MODULE, environment={"PYTHONPATH": ROOT})
    process.log_to(tmp_path / "worker.log")
    process.send({"do": "exit", "code": 3, "words": "hello"})
    with pytest.raises(ProcessLost, match="hello"):
        process.receive(SOON_S)
    assert (tmp_path / "mine").read_text() == "mine"


STARTS = f"""
import sys, time
from dynbench.launch import LocalLauncher
process = LocalLauncher().start({MODULE!r}, environment={{"PYTHONPATH": {ROOT!r}}})
process.send({{"do": "facts", "names": []}})
print(process.receive(60)["pid"], flush=True)
process.send({{"do": "spin"}})
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_busy_process_ends_with_the_one_that_started_it_and_says_nothing(number: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(number)
    assert is_gone(pid)
    assert parent.communicate()[1] == ""


def test_where_the_kernel_does_not_end_it_the_closed_pipe_does() -> None:
    code = "import os, time\nfrom dynbench.launch.channel import end_after\nend_after(0, 0.01)\ntime.sleep(600)\n"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.poll() is None and process.stdin is not None
    process.stdin.close()
    assert process.wait(SOON_S) == 1


def test_another_interpreter_can_be_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "{\\"arguments\\": \\"$*\\"}"\n')
    python.chmod(0o755)
    launcher = LocalLauncher(str(python))
    assert launcher.facts() == {"executable": "python"}
    process = launcher.start("some.module", environment={})
    assert process.receive(SOON_S) == {"arguments": "-m some.module"}
    assert process.close() == 0


def test_threads_are_limited_before_it_starts() -> None:
    process = LocalLauncher().start(MODULE, environment={"PYTHONPATH": ROOT, **thread_environment(2)})
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED"]
    assert list(asked(process, "facts", names=names)["environment"].values()) == ["2", "2", "0"]
    process.kill()


def test_the_python_path_has_every_folder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/a", ROOT, "/b"]))
    assert python_path(Path("/b"), Path("/c")).split(os.pathsep) == ["/b", "/c", ROOT, "/a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("class Mine:\n    name = 'mine'\n    def facts(self): ...\n", "it has no 'start'"), ("Mine = 3\n", "no 'name'")],
)
def test_a_target_that_lacks_a_method_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"mine.py:Mine is not a target: .*{message}"):
        choose("mine.py:Mine", LAUNCHERS, tmp_path, "a target", PROTOCOL)
