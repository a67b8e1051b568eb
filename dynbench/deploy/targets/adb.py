"""A device by adb: as by ssh, the agent is started detached, and asked for until its result is there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynbench.deploy.targets.adb_client import AdbClient
from dynbench.deploy.targets.agents import NATIVE_REMEDY
from dynbench.deploy.targets.base import Failed, Step
from dynbench.deploy.targets.ssh import FULL, Ssh, in_folder
from dynbench.deploy.targets.ssh_client import Client, Unreachable
from dynbench.errors import UserError

PARENT = '"$(if [ -d /data/local/tmp ]; then echo /data/local/tmp; else echo "${TMPDIR:-/tmp}"; fi)"'


@dataclass(frozen=True)
class Adb(Ssh):
    """A device that runs adbd: by the native agent, or by a Python that its shell may start."""

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
                yield self._native(client) if self.reach.measures == "native" else self._interpreter(client)
                yield self._disk(client)
        except (Unreachable, UserError) as e:
            yield Step("connection", "missing", str(e), "try `adb devices -l`")

    def _remedy(self) -> str:
        if self.reach.measures == "native":
            return NATIVE_REMEDY
        return (
            "the shell of adb needs a Python with numpy and onnxruntime that it may start (Debian's adbd, or a rooted "
            'device): give `python = "..."` in its file; other phones measure by `agent = "native"`, or in the browser'
        )

    def _send(self, client: Client, files: dict[str, Path], folder: str) -> None:
        if not isinstance(client, AdbClient):
            raise TypeError("files are sent to this target by adb")
        by_folder: dict[str, list[Path]] = {}
        for name, place in files.items():
            by_folder.setdefault(str(Path(name).parent), []).append(place)
        wrong = ""
        for parent, places in by_folder.items():
            there = folder if parent == "." else f"{folder}/{parent}"
            made = client.ask(f"mkdir -p {shlex.quote(there)}")
            wrong = wrong or ("" if made.ok else made.error or "no folder can be made") or client.put(places, there)
        for name, place in files.items():  # it keeps the names of files
            if not wrong and Path(name).name != place.name:
                at = str(Path(name).with_name(place.name))
                moved = client.ask(f"mv {in_folder(folder, at)} {in_folder(folder, name)}")
                wrong = "" if moved.ok else moved.error or "a file cannot be renamed"
        if wrong:
            if FULL in wrong:
                raise Failed(f"{self.name}: its disk is full; free some space, or name another `folder` in its file")
            client.ask("true")  # raises if it is not there any more
            raise Failed(f"{self.name}: the job cannot be written there: {wrong}")
