"""Any device with a browser: a page is served in the local network, and every device that opens it sends results.

Unlike other targets this one is not asked for a result: people open the link on as many devices as they like, whenever
they like. So results are collected, for several jobs at once, until enough devices have finished or time is over.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from queue import Empty
from typing import Any

from dynbench.deploy.agents.browser import runtime as ort_web
from dynbench.deploy.job import MOST_RESULT_BYTES, read_job
from dynbench.deploy.targets.base import Failed, Lost, Step
from dynbench.deploy.targets.browser_address import lan_addresses, links, qr_code
from dynbench.deploy.targets.browser_guests import Guests, Received
from dynbench.deploy.targets.browser_here import opened
from dynbench.deploy.targets.browser_server import Server, Take
from dynbench.errors import UserError
from dynbench.scratch import make_scratch

PAGE = "page.html"
STATIC = (
    PAGE,
    "style.css",
    "page.js",
    "outbox.js",
    "device.js",
    "agent.js",
    "measure.js",
    "ort.js",
    "npy.js",
    "sha256.js",
)
MOST_PROGRESS_BYTES = 1 << 13
LOOK_S = 0.5


@dataclass(frozen=True)
class Browser:
    """The target `browser`.

    Attributes:
        name: of the target.
        host: where the page is served; empty: at all addresses of this machine.
        port: 0: any that is free.
        runtime_folder: of ONNX Runtime Web's npm package; None: it is looked for, and else downloaded once.
        webgpu: measure by WebGPU too, where a browser has it.
        opens: a program on this machine that opens the page; empty: people do.
        device: what that browser is called.
        show: is given what people need to join, line by line: the link and its QR code.
    """

    name: str = "browser"
    host: str = ""
    port: int = 0
    runtime_folder: Path | None = None
    webgpu: bool = True
    opens: str = ""
    device: str = ""
    show: Callable[[str], None] = print

    def facts(self) -> dict[str, Any]:
        """What is known before a device opens the page."""
        found = ort_web.find(self.runtime_folder)
        return {
            "kind": "browser",
            "runtime": ort_web.PACKAGE,
            "runtime_version": ort_web.TESTED if found is None else found.version,
        }

    def doctor(self) -> Iterator[Step]:
        """The runtime's files, the port, the addresses, and what stands between them and a phone."""
        yield self._runtime_step()
        try:
            with Server(self.host, self.port, {}, {}) as server:
                port = server.port
        except UserError as e:
            yield Step("port", "missing", str(e))
            return
        where = f"port {self.port}" if self.port else f"any free port, such as {port}"
        yield Step("port", "ok", f"a page can be served at {self.host or 'all addresses'}, {where}")
        addresses = lan_addresses()
        if addresses:
            yield Step("network", "ok", f"other devices reach this machine at {' or '.join(addresses)}")
        else:
            yield Step(
                "network", "missing", "this machine has no address that other devices could reach", "join their network"
            )
        yield Step(
            "firewall",
            "note",
            "whether a firewall lets devices in cannot be seen from here",
            f"if the page does not open: let TCP port {self.port or 'PORT (`port` in its file)'} in, such as "
            f"`sudo ufw allow {self.port or 'PORT'}/tcp`, and see that both are in the same Wi-Fi, which must not be "
            "one for guests: it keeps its devices apart",
        )
        yield Step(
            "secure address",
            "note",
            "on an http address browsers give a page one thread, no WebGPU and a coarse clock",
            "for all of them connect an Android device by USB, run `adb reverse tcp:PORT tcp:PORT`, and open the link "
            "with localhost",
        )

    def run(self, job: Path, agent: str, *, deadline_s: float, progress: Callable[[str], None]) -> Path:
        """The result of the first device that sends one; see `collect` for those of several.

        Raises:
            UserError: another agent is asked for, or the page cannot be served.
            Lost: no device sent a result in time.
            Failed: the device says that it could not measure.
        """
        if agent != "browser":
            raise UserError(f"target {self.name} measures by the agent 'browser', not {agent!r}")
        out = make_scratch("browser")
        for received in self.collect([job], out, devices=1, deadline_s=deadline_s, progress=progress):
            if received.result.status != "ok":
                raise Failed(f"{received.device}: {received.result.reason}")
            return received.path
        raise Lost(f"no device sent a result within {deadline_s:.0f} s")

    def collect(
        self,
        jobs: Sequence[Path],
        out: Path,
        *,
        devices: int | None,
        deadline_s: float,
        progress: Callable[[str], None],
    ) -> Iterator[Received]:
        """Serves the page and gives each result as it comes. Ctrl-C ends it as the deadline does: what came is kept.

        Args:
            jobs: folders; each device measures all of them.
            out: a folder for the results, one folder each with `result.json` and `result.sha256`.
            devices: how many must have finished; None: until the deadline or Ctrl-C.
            deadline_s: after which it ends.
            progress: is told what each device does, by several threads, one at a time.

        Raises:
            UserError: there is no runtime, the port is in use, or a job is malformed.
        """
        found = ort_web.find(self.runtime_folder) or ort_web.obtain(progress)
        known = {job.job_id: job for job in map(read_job, jobs)}
        guests = Guests(known, out, progress)
        takes = {
            "progress": Take(MOST_PROGRESS_BYTES, guests.progress),
            "result": Take(MOST_RESULT_BYTES, guests.result),
        }
        end = time.monotonic() + deadline_s
        browser = None
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Server(self.host, self.port, self._files(jobs, found), takes))
            if self.opens:
                devices = devices or 1
                *_, link = links(self.host, server.port, server.token)
                browser = stack.enter_context(opened(self.opens, link, self.device))
            else:
                self._invite(server)
            finished = 0
            try:
                while (devices is None or finished < devices) and time.monotonic() < end:
                    try:
                        yield guests.received.get(timeout=LOOK_S)
                    except Empty:
                        finished = guests.look()
                        if browser is not None and browser.poll() is not None:
                            progress(f"{self.opens} ended by itself")
                            break
            except KeyboardInterrupt:
                progress("ended by Ctrl-C; what came is kept")
            while not guests.received.empty():
                yield guests.received.get()
        for label in guests.missing():
            progress(f"{label}: did not finish")

    def _invite(self, server: Server) -> None:
        first, *others = links(self.host, server.port, server.token)
        self.show("Open this link on each device that is to be measured, in the same network:")
        self.show("")
        self.show(f"  {first}")
        for other in others:
            self.show(f"  or {other}")
        self.show("")
        self.show(qr_code(first))
        self.show("Whoever has the link can take part. Ctrl-C ends it and keeps what came.")

    def _files(self, jobs: Sequence[Path], found: ort_web.Runtime) -> dict[str, Path | bytes]:
        """Everything that the page may ask for."""
        package = resources.files("dynbench.deploy.agents.browser")
        files: dict[str, Path | bytes] = {name: (package / name).read_bytes() for name in STATIC}
        files[""] = files.pop(PAGE)
        providers = [p for p in found.providers if p == "wasm" or self.webgpu]
        files |= {f"runtime/{name}": found.folder / name for p in providers for name in ort_web.FILES[p]}
        described = []
        for folder in jobs:
            job = read_job(folder)
            described.append(job.model_dump(mode="json"))
            files |= {f"jobs/{job.job_id}/{name}": folder / name for name in job.sha256}
        runtime = {"version": found.version, "files": {p: ort_web.FILES[p] for p in providers}}
        files["setup.json"] = json.dumps({"jobs": described, "runtime": runtime}).encode()
        return files

    def _runtime_step(self) -> Step:
        try:
            found = ort_web.find(self.runtime_folder)
        except UserError as e:
            return Step("runtime", "missing", str(e))
        if found is None:
            return Step(
                "runtime",
                "note",
                f"{ort_web.PACKAGE} is not on this machine; npm downloads {ort_web.TESTED} once when a run starts",
                ort_web.REMEDY,
            )
        text = f"{ort_web.PACKAGE} {found.version} in {found.folder} ({found.source}): {', '.join(found.providers)}"
        if found.version != ort_web.TESTED:
            return Step("runtime", "note", f"{text}; dynbench is tested with {ort_web.TESTED}")
        return Step("runtime", "ok", text)
