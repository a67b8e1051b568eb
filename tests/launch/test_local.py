"""What is particular to processes of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.launch import LAUNCHERS, PROTOCOL, LocalLauncher, ProcessLost, thread_environment
from dynbench.launch.local import python_path
from dynbench.parts import choose
from tests.launch.test_contract import MODULE, ROOT, SOON_S, asked


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
