"""The OpenSSH client of this machine: one connection, shared by all commands."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dynbench.deploy.targets.profile import Reach
from dynbench.errors import DynbenchError, UserError
from dynbench.files import make_folder
from dynbench.paths import cache_dir

CONNECT_S, ALIVE_S, ALIVE_TIMES = 10, 5, 3
COMMAND_S = 120.0
NO_CONNECTION = 255  # what ssh itself answers; a command may answer it too, so a marker says whether one ran
MARKER = "dynbench:ran:"


class Unreachable(DynbenchError):
    """The device does not answer, or the connection was cut."""


@dataclass(frozen=True)
class Said:
    """What a command on a device gave.

    Attributes:
        ok: it ended with 0.
        out: its standard output.
        errors: its standard error.
    """

    ok: bool
    out: bytes
    errors: str

    @property
    def text(self) -> str:
        """Its standard output as text."""
        return self.out.decode("utf-8", "replace").strip()

    @property
    def error(self) -> str:
        """The last line of its standard error, which mostly says why."""
        return (self.errors.splitlines() or [""])[-1][:300]


class Client:
    """A connection; it is opened by the first command, and closed by the end of a `with` block."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach

    def __enter__(self) -> Self:
        if shutil.which("ssh") is None:
            raise UserError("ssh is not installed on this machine: install OpenSSH's client (openssh-client)")
        self._folder = Path(tempfile.mkdtemp(prefix="dbssh"))  # short: paths of sockets have 104 characters at most
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [*self._command(), "-O", "exit", self._reach.host],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10, check=False,
            )  # fmt: skip
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, script: str, given: bytes = b"") -> Said:
        """Runs a script of `sh` on the device.

        Args:
            script: what is run.
            given: its standard input.

        Raises:
            Unreachable: it was not run to its end, as far as is known here.
        """
        # The marker tells a command that answers 255 from a connection that was cut.
        wrapped = f"( {script}\n); r=$?; printf '\\n{MARKER}%s\\n' \"$r\""
        command = [*self._command(), self._reach.host, f"exec sh -c {shlex.quote(wrapped)}"]
        try:
            done = subprocess.run(command, input=given, capture_output=True, timeout=COMMAND_S, check=False)
        except subprocess.TimeoutExpired as e:
            raise Unreachable(f"{self._reach.host} does not answer within {COMMAND_S:.0f} s") from e
        words = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        out, marker, code = done.stdout.rpartition(f"\n{MARKER}".encode())
        if not marker or not code.strip().isdigit():
            raise Unreachable(self._why(words))
        return Said(code.strip() == b"0", out, "\n".join(words))

    def _why(self, words: list[str]) -> str:
        host, said = self._reach.host, " ".join(words)
        if "Host key verification failed" in said:
            return (
                f"the key of {host} is not known, or has changed: connect once by `ssh {host}` to compare it, or give "
                "`accept_new_host = true` in its file"
            )
        if "Permission denied" in said:
            return f"{host} lets nobody in with this key: use `ssh-copy-id`, or give `identity` in its file"
        return f"{host} cannot be reached by ssh: {words[-1][:200] if words else 'the connection was cut'}"

    def _command(self) -> list[str]:
        make_folder(cache_dir())
        reach, home = self._reach, Path("~/.ssh/known_hosts").expanduser()
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_S),
            "ServerAliveInterval": str(ALIVE_S),
            "ServerAliveCountMax": str(ALIVE_TIMES),
            "ControlMaster": "auto",
            "ControlPath": str(self._folder / "%C"),
            "ControlPersist": "60",
            "StrictHostKeyChecking": "accept-new" if reach.accept_new_host else "yes",
            "UserKnownHostsFile": f'"{cache_dir() / "known_hosts"}" "{home}"',
        }
        if reach.identity:
            options |= {"IdentityFile": f'"{reach.identity}"', "IdentitiesOnly": "yes"}
        command = ["ssh", "-T", *(part for key, value in options.items() for part in ("-o", f"{key}={value}"))]
        command += ["-p", str(reach.port)] if reach.port else []
        return command + (["-l", reach.user] if reach.user else [])
