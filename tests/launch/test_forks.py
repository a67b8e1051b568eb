"""Fork servers; what their processes do is in `test_contract.py`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dynbench.launch import ForkServer, LocalLauncher, ProcessLost
from tests.launch.test_contract import MODULE, ROOT, SOON_S, asked, is_gone, lost


@pytest.fixture
def server() -> Iterator[ForkServer]:
    running = ForkServer(LocalLauncher(), [MODULE], environment={"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "3"})
    yield running
    running.close()


def test_every_process_is_a_fresh_one_with_the_servers_environment(server: ForkServer) -> None:
    processes = [server.fork(f"{MODULE}:serve") for _ in range(3)]
    facts = [asked(p, "facts", names=["OMP_NUM_THREADS"]) for p in processes]
    assert len({f["pid"] for f in facts}) == 3
    assert [p.pid for p in processes] == [f["pid"] for f in facts]
    assert all(f["environment"] == {"OMP_NUM_THREADS": "3"} for f in facts)


def test_the_end_of_one_leaves_the_others_and_every_exit_code_is_its_own(server: ForkServer) -> None:
    processes = [server.fork(f"{MODULE}:serve") for _ in range(20)]
    for code, process in enumerate(processes[:-1]):
        process.send({"do": "exit", "code": code, "words": ""})
    for code, process in reversed(list(enumerate(processes[:-1]))):
        assert lost(process, "echo", what=1).exit_code == code
    assert asked(processes[-1], "echo", what=1) == {"echo": 1}


def test_what_a_process_raises_is_an_exit_code(server: ForkServer) -> None:
    for serve in (f"{MODULE}:no_such_function", "tests.launch.no_such_module:serve"):
        assert lost(server.fork(serve), "echo", what=1).exit_code == 1


def test_closing_ends_all_processes_also_those_that_hang(server: ForkServer) -> None:
    processes = [server.fork(f"{MODULE}:serve") for _ in range(2)]
    processes[0].send({"do": "hang"})
    server.close()
    assert all(is_gone(p.pid) for p in processes)
    end = lost(processes[0], "echo", what=1)
    assert (end.cause, end.exit_code) == ("unreachable", None)
    with pytest.raises(ProcessLost):
        server.fork(f"{MODULE}:serve")


def test_a_preload_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('half done')\n")
    server = ForkServer(LocalLauncher(), ["broken"], environment={}, folder=tmp_path)
    with pytest.raises(ProcessLost, match="half done") as caught:
        server.ready()
    server.close()
    assert (caught.value.cause, caught.value.exit_code) == ("ended", 1)


def test_the_path_of_its_folder_may_be_longer_than_that_of_a_socket(tmp_path: Path) -> None:
    inside = tmp_path / ("long" * 30)
    inside.mkdir()
    server = ForkServer(LocalLauncher(), [MODULE], environment={"PYTHONPATH": ROOT}, inside=inside)
    assert asked(server.fork(f"{MODULE}:serve"), "echo", what=1) == {"echo": 1}
    server.close()
    assert list(inside.iterdir()) == []


def test_nothing_is_left_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import time\nfrom dynbench.launch import ForkServer, LocalLauncher\n"
        f"server = ForkServer(LocalLauncher(), ['{MODULE}'], environment={{'PYTHONPATH': {ROOT!r}}})\n"
        f"one, two = (server.fork('{MODULE}:serve') for _ in range(2))\n"
        "one.send({'do': 'hang'})\nprint('started', flush=True)\ntime.sleep(600)\n"
    )
    environment = {"PYTHONPATH": ROOT, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None and parent.stdout.readline() == "started\n"
    descendants = psutil.Process(parent.pid).children(recursive=True)
    assert len(descendants) == 3 and len(list(tmp_path.iterdir())) == 1
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(descendants, timeout=SOON_S)[1] == []
    deadline = time.monotonic() + SOON_S
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
