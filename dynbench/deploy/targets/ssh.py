"""A device by the plain OpenSSH client: the agent is started detached, so that a cut connection does not lose it."""

from __future__ import annotations

import io
import shlex
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynbench.deploy.agents.python_agent import SPARE_S
from dynbench.deploy.bundle import sha256
from dynbench.deploy.job import JOB, RESULT, RESULT_SHA256, Job, read_job
from dynbench.deploy.targets.agents import (
    NATIVE_REMEDY,
    PROBE,
    PYTHON_REMEDY,
    Agent,
    NativeAgent,
    agent_for,
    digests,
    started,
)
from dynbench.deploy.targets.base import Failed, Lost, Step
from dynbench.deploy.targets.local import last_words
from dynbench.deploy.targets.outcome import kept, proved
from dynbench.deploy.targets.profile import Reach
from dynbench.deploy.targets.ssh_client import Client, Unreachable
from dynbench.errors import UserError

LOOK_S, SLOWEST_LOOK_S = 0.5, 5.0  # each look starts a shell on the device: they become rare
FULL = "No space left on device"


@dataclass(frozen=True)
class Ssh:
    """A device that runs an ssh server."""

    name: str
    reach: Reach

    @property
    def _python(self) -> str:
        return shlex.quote(self.reach.python or "python3")

    @property
    def _parent(self) -> str:
        return shlex.quote(self.reach.folder) if self.reach.folder else '"${TMPDIR:-/tmp}"'

    def _client(self) -> Client:
        return Client(self.reach)

    def facts(self) -> dict[str, Any]:
        """Kind and agent; where it is is nobody else's business."""
        return {"kind": "ssh", "agent": self.reach.measures}

    def doctor(self) -> Iterator[Step]:
        """Client, connection, kind of machine, interpreter, packages, disk."""
        try:
            with self._client() as client:
                machine = client.ask("uname -sm")
                yield Step("connection", "ok", f"{self.reach.host} answers: {machine.text}")
                yield self._native(client) if self.reach.measures == "native" else self._interpreter(client)
                yield self._disk(client)
        except (Unreachable, UserError) as e:
            yield Step("connection", "missing", str(e), f"try `ssh -o BatchMode=yes {self.reach.host} true`")

    def _disk(self, client: Client) -> Step:
        free = client.ask(f"df -Pk {self._parent} | tail -n 1")
        if free.ok and len(fields := free.text.split()) >= 4 and fields[3].isdigit():
            return Step("disk", "ok", f"{int(fields[3]) // 1024} MiB are free")
        remedy = "name another with `folder = ...`"
        return Step("disk", "missing", f"its folder cannot be used: {free.error or free.text}", remedy)

    def _interpreter(self, client: Client) -> Step:
        said = client.ask(f"{self._python} -c {shlex.quote(PROBE)}")
        words = said.text.split()
        if said.ok and len(words) == 3:
            return Step("python", "ok", "Python {}, numpy {}, onnxruntime {}".format(*words))
        return Step("python", "missing", f"{self._python} cannot measure: {said.error or said.text}", self._remedy())

    def _native(self, client: Client) -> Step:
        """Sends the native agent, asks it for its version, and removes it."""
        folder = ""
        try:
            agent = self._agent(client)
            folder = self._folder(client)
            self._send(client, agent.files, folder)
            said = client.ask(agent.hashes(folder, list(agent.files)))
        except (UserError, Failed) as e:
            return Step("native agent", "missing", str(e), NATIVE_REMEDY)
        finally:
            self._clear(client, folder)
        return started(said.ok, said.text, said.error)

    def _remedy(self) -> str:
        return NATIVE_REMEDY if self.reach.measures == "native" else PYTHON_REMEDY

    def _agent(self, client: Client, say: Callable[[str], None] = lambda _: None) -> Agent:
        """The agent, if it is one for this device.

        Raises:
            UserError: it cannot be built.
            Failed: it is for another machine.
        """
        agent = agent_for(self.reach, "python3", say)
        if isinstance(agent, NativeAgent):
            said = client.ask(f"uname -m; test -e {shlex.quote(agent.built.loader)}")
            if wrong := agent.misfit(said.text, has_loader=said.ok):
                raise Failed(f"{self.name}: {wrong}")
        return agent

    def run(self, job: Path, agent: str, *, deadline_s: float, progress: Callable[[str], None]) -> Path:
        """Measures a job.

        Raises:
            UserError: another agent is asked for, or ssh is not installed.
            Lost: it cannot be reached, or did not finish in time.
            Failed: it cannot measure, and says why.
        """
        if agent != self.reach.measures:
            raise UserError(f"target {self.name} measures by the agent {self.reach.measures!r}, not {agent!r}")
        asked = read_job(job)
        folder = ""
        end = time.monotonic() + deadline_s
        with self._client() as client:
            try:
                mine = self._agent(client, lambda text: progress(f"{self.name}: {text}"))
                folder = self._folder(client)
                self._push(client, job, asked, mine, folder)
                progress(f"{self.name}: measuring {asked.workload}")
                self._start(client, mine, folder)
                digest = self._wait(client, folder, end, deadline_s, progress)
                content = client.ask(f"cat {in_folder(folder, RESULT)}").out
                proved(content, digest, asked, agent, self.name)
            except Unreachable as e:
                raise Lost(f"{self.name}: {e}{self._left(client, folder, asked)}") from e
            finally:
                self._clear(client, folder)
        return kept(content, job)

    def _folder(self, client: Client) -> str:
        said = client.ask(f"umask 077; mktemp -d {self._parent}/dynbench.XXXXXXXX")
        folder = said.text.splitlines()[-1] if said.text else ""
        if not said.ok or not folder.startswith("/"):
            raise Failed(f"{self.name}: no folder can be made there: {said.error or said.text or 'no message'}")
        return folder

    def _push(self, client: Client, job: Path, asked: Job, agent: Agent, folder: str) -> None:
        self._send(client, {name: job / name for name in [*asked.sha256, JOB]} | agent.files, folder)
        sent = {JOB: job / JOB} | agent.files  # the agent compares the others
        said = client.ask(agent.hashes(folder, list(sent)))
        if not said.ok:
            raise Failed(f"{self.name}: {agent.program} cannot be started there ({said.error}); {self._remedy()}")
        if digests(said.text) != [sha256(place.read_bytes()) for place in sent.values()]:
            raise Lost(f"{self.name}: the job did not arrive as it was sent: a sha256 differs")

    def _send(self, client: Client, files: dict[str, Path], folder: str) -> None:
        """Copies files, by their names there, into a folder of the device."""
        done = client.ask(f"tar -x -f - -C {shlex.quote(folder)}", _archive(files))
        if not done.ok:
            if FULL in done.errors:
                raise Failed(f"{self.name}: its disk is full; free some space, or name another `folder` in its file")
            raise Failed(f"{self.name}: the job cannot be written there: {done.error or 'no message'}")

    def _start(self, client: Client, agent: Agent, folder: str) -> None:
        said = client.ask(
            f"cd {shlex.quote(folder)} && {{ nohup {shlex.join(agent.start(folder))} </dev/null >agent.log 2>&1 & "
            "echo $! >agent.pid; }"
        )
        if not said.ok:
            raise Failed(f"{self.name}: the agent cannot be started: {said.error or 'no message'}")

    def _wait(self, client: Client, folder: str, end: float, deadline_s: float, progress: Callable[[str], None]) -> str:
        """Until the hash of the result is there, which is returned; a connection that fails is tried again."""
        look, cut = LOOK_S, False
        question = (
            f"cat {in_folder(folder, RESULT_SHA256)} 2>/dev/null && exit 0; "
            f'kill -0 "$(cat {in_folder(folder, "agent.pid")})" 2>/dev/null && echo alive && exit 0; '
            f"cat {in_folder(folder, RESULT_SHA256)} 2>/dev/null || echo ended"  # it may have ended between the two
        )
        while time.monotonic() < end:
            try:
                said = client.ask(question)
            except Unreachable as e:
                if not cut:
                    progress(f"{self.name}: {e}; the agent goes on there, and is asked again")
                cut = True
            else:
                cut = False
                if said.text == "ended":
                    words = last_words(client.ask(f"tail -n 5 {in_folder(folder, 'agent.log')}").out)
                    raise Failed(f"{self.name}: the agent ended without a result: {words}")
                if said.text != "alive":
                    return said.text
            time.sleep(min(look, max(0.0, end - time.monotonic())))
            look = min(1.5 * look, SLOWEST_LOOK_S)
        raise Lost(f"{self.name}: it did not finish within {deadline_s:.0f} s, and was ended if it could be reached")

    def _left(self, client: Client, folder: str, asked: Job) -> str:
        if not folder:
            return ""
        return f"; what still runs there ends by itself within {asked.deadline_s + SPARE_S:.0f} s"

    def _clear(self, client: Client, folder: str) -> None:
        """Ends the agent, if it is this one, and removes the folder."""
        if not folder:
            return
        here = shlex.quote(folder)
        ends = (
            f'p=$(cat {in_folder(folder, "agent.pid")} 2>/dev/null); if [ -n "$p" ] && '
            f'{{ [ ! -r "/proc/$p/cmdline" ] || tr "\\0" " " <"/proc/$p/cmdline" | grep -qF {here}; }}; '
            f'then kill -9 "$p" 2>/dev/null; fi; rm -rf {here}'
        )
        try:
            client.ask(ends)
        except Unreachable:  # the deadline of the agent holds without us
            return


def in_folder(folder: str, name: str) -> str:
    """The path of a file on the device, quoted for its shell."""
    return shlex.quote(f"{folder}/{name}")


def _archive(files: dict[str, Path]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, place in files.items():
            content = place.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
