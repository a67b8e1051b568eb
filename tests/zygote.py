"""Processes of dynbench without their imports: forked from one that has imported torch and has done nothing since.

`dynbench run` starts a process that measures, that one starts another that forks more, and importing torch takes each
of them longer than what most tests let them do. Processes that are forked keep the contract of all processes, see
`tests/launch`; those that start there without this are real, as are the runs in `tests/faults` that end by a signal.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynbench.launch import local

MODULES = ("dynbench.experiment.worker", "dynbench.launch.fork_server")
PRELOAD = (
    *("dynbench.experiment.serve", "dynbench.experiment.memory", "dynbench.gate.revision_worker"),
    *("torch._dynamo", "pandas", "pyarrow.parquet", "scipy.special"),  # which they import when they need them
)
ROOT = Path(__file__).parents[1]
SOCKET = "DYNBENCH_TESTS_ZYGOTE"
"""Environment variable: where the zygote listens, also for processes that it forked."""


class Subprocess:
    """Stands for the module `subprocess` where dynbench starts its processes.

    Args:
        modules: of which programs are forked, if the system can wait for them: Linux.
    """

    PIPE, TimeoutExpired = subprocess.PIPE, subprocess.TimeoutExpired

    def __init__(self, modules: tuple[str, ...] = MODULES) -> None:
        self._modules = modules if hasattr(os, "pidfd_open") else ()

    def Popen(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, **how: Any) -> Any:
        """Forks what the zygote has imported; what is another program, or another dynbench, is started."""
        words = list(command)
        if words[:-1] != [sys.executable, "-m"] or words[-1] not in self._modules or _dynbench(env, cwd) != ROOT:
            return subprocess.Popen(command, env=env, cwd=cwd, **how)
        return Forked(_address(), words[-1], {**env, SOCKET: _address()}, cwd or Path.cwd())


def _dynbench(environment: Mapping[str, str], folder: Path | None) -> Path | None:
    """The folder of which a process would import dynbench."""
    places = [str(folder or ""), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    found = (Path(place).resolve() for place in places)
    return next((place for place in found if (place / "dynbench" / "__init__.py").is_file()), None)


class Forked:
    """What `LocalProcess` needs of a `subprocess.Popen`.

    Args:
        address: of the zygote.
        module: to be run as a program.
        environment: the whole of it.
        folder: where it runs.
    """

    def __init__(self, address: str, module: str, environment: Mapping[str, str], folder: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        ends = [os.pipe(), os.pipe(), os.pipe()]
        self.stdin = open(ends[0][1], "wb", buffering=0)  # noqa: SIM115 (closed by whoever started it)
        self.stdout, self.stderr = (open(read, "rb", buffering=0) for read, _ in ends[1:])  # noqa: SIM115
        theirs = [ends[0][0], ends[1][1], ends[2][1]]
        socket.send_fds(self._connection, [b"."], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        request = {"module": module, "environment": dict(environment), "folder": str(folder)}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._answers = self._connection.makefile("rb")
        self.pid = int(self._answers.readline())
        self._exit_code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """
        if self._exit_code is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self._exit_code = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self._exit_code

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process, if that still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
            return
        os.kill(self.pid, number)


@functools.cache
def _address() -> str:
    """Where the zygote listens. It is started when this is first asked, and ends with the process that asked."""
    if SOCKET in os.environ:
        return os.environ[SOCKET]
    address = str(Path(tempfile.mkdtemp(prefix="dynbench-tests-")) / "zygote")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", SOCKET: address}
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
    _processes.append(process)
    return address


_processes: list[subprocess.Popen[bytes]] = []


@contextlib.contextmanager
def forks() -> Iterator[None]:
    """Meanwhile dynbench starts its processes so."""
    before, local.subprocess = local.subprocess, Subprocess()  # type: ignore[assignment,attr-defined]
    try:
        yield
    finally:
        local.subprocess = before  # type: ignore[attr-defined]
        _address.cache_clear()
        while _processes:
            process = _processes.pop()
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def main() -> None:
    """The zygote: serves until its input ends. Returns in the processes that it forks, ready to be another program."""
    for name in PRELOAD:
        importlib.import_module(name)
    local.subprocess = Subprocess()  # type: ignore[assignment,attr-defined]
    signal.signal(signal.SIGCHLD, _reap)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.environ[SOCKET])
    listener.listen()
    print("ready", flush=True)
    os.dup2(2, 1)
    gc.freeze()  # a collection in a forked process would touch, and so copy, every page
    while 0 not in select.select([0, listener], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attend(connection)
            return
        connection.close()
    shutil.rmtree(Path(os.environ[SOCKET]).parent, ignore_errors=True)
    os._exit(0)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _attend(connection: socket.socket) -> None:
    """Forks the process that is asked for, in which this returns its module, and attends it until it ends.

    It is killed, with all of its session, when who asked for it ends.
    """
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as asked:
        request = json.loads(asked.readline())
    pid = os.fork()
    if pid == 0:
        _become(request, descriptors, connection)
        return
    for descriptor in [0, *descriptors]:
        os.close(descriptor)
    poll, ended = select.poll(), os.pidfd_open(pid)
    poll.register(ended, select.POLLIN)
    poll.register(connection, 0)  # being hung up is always reported
    if ended not in dict(poll.poll()):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % code)
    os._exit(0)


def _become(request: dict[str, Any], descriptors: list[int], connection: socket.socket) -> None:
    """The forked process, made as a fresh one: its session, environment, folder, input and output."""
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    paths = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = dict.fromkeys([request["folder"], *filter(None, paths), *sys.path])
    sys.argv[:] = [request["module"]]
    connection.sendall(b"%d\n" % os.getpid())
    connection.close()


def _run(module: str) -> int:
    """Runs a module as a program; its exit code."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        return 1
    finally:
        atexit._run_exitfuncs()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    main()
    os._exit(_run(sys.argv[0]))  # libraries may wait for threads, which a fork does not have, when they are unloaded
