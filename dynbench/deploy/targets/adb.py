"""A device by adb: as by ssh, the agent is started detached, and asked for until its result is there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynbench.deploy.agents import python_agent
from dynbench.deploy.bundle import sha256
from dynbench.deploy.job import JOB, Job
from dynbench.deploy.targets.adb_client import AdbClient
from dynbench.deploy.targets.base import Failed, Lost, Step
from dynbench.deploy.targets.local import AGENT
from dynbench.deploy.targets.ssh import FULL, HASHES, Ssh, in_folder
from dynbench.deploy.targets.ssh_client import Client, Unreachable
from dynbench.errors import UserError

PARENT = '"$(if [ -d /data/local/tmp ]; then echo /data/local/tmp; else echo "${TMPDIR:-/tmp}"; fi)"'


@dataclass(frozen=True)
class Adb(Ssh):
    """A device that runs adbd, and has a Python that its shell may start."""

    def facts(self) -> dict[str, Any]:
        """Kind and agent; a serial number is nobody else's business."""
        return {"kind": "adb", "agent": self.reach.measures}

    @property
    def _parent(self) -> str:
        return shlex.quote(self.reach.folder) if self.reach.folder else PARENT

    def _client(self) -> Client:
        return AdbClient(self.reach)

    def doctor(self) -> Iterator[Step]:
        """Client, connection, kind of machine, interpreter, packages, disk."""
        try:
            with self._client() as client:
                yield Step("connection", "ok", f"the device answers: {client.ask('uname -sm').text}")
                yield self._interpreter(client)
                yield self._disk(client)
        except (Unreachable, UserError) as e:
            yield Step("connection", "missing", str(e), "try `adb devices -l`")

    def _remedy(self) -> str:
        return (
            "the shell of adb needs a Python with numpy and onnxruntime that it may start (Debian's adbd, or a rooted "
            'device): give `python = "..."` in its file; on other phones measure in the browser, or by ssh to Termux'
        )

    def _push(self, client: Client, job: Path, asked: Job, folder: str) -> None:
        if not isinstance(client, AdbClient):
            raise TypeError("files are sent to this target by adb")
        agent = Path(python_agent.__file__)
        by_folder: dict[str, list[Path]] = {}
        for name in [*asked.sha256, JOB]:
            by_folder.setdefault(str(Path(name).parent), []).append(job / name)
        wrong = client.put([agent], folder)
        if not wrong:
            client.ask(f"mv {in_folder(folder, agent.name)} {in_folder(folder, AGENT)}")
        for parent, files in by_folder.items():
            place = folder if parent == "." else f"{folder}/{parent}"
            made = client.ask(f"mkdir -p {shlex.quote(place)}")
            wrong = wrong or ("" if made.ok else made.error or "no folder can be made") or client.put(files, place)
        if wrong:
            if FULL in wrong:
                raise Failed(f"{self.name}: its disk is full; free some space, or name another `folder` in its file")
            client.ask("true")  # raises if it is not there any more
            raise Failed(f"{self.name}: the job cannot be written there: {wrong}")
        said = client.ask(
            f"{self._python} -c {shlex.quote(HASHES)} {in_folder(folder, AGENT)} {in_folder(folder, JOB)}"
        )
        if not said.ok:
            raise Failed(f"{self.name}: {self._python} cannot be started there ({said.error}); {self._remedy()}")
        if said.text.split() != [sha256(agent.read_bytes()), sha256((job / JOB).read_bytes())]:
            raise Lost(f"{self.name}: the job did not arrive as it was sent: a sha256 differs")
