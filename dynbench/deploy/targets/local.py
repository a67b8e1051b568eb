"""This machine as a device: the agent in a process and a folder of its own."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynbench.deploy.job import JOB, RESULT, RESULT_SHA256, read_job
from dynbench.deploy.targets.agents import NATIVE_REMEDY, PROBE, Agent, NativeAgent, agent_for, started
from dynbench.deploy.targets.base import Failed, Lost, Step
from dynbench.deploy.targets.outcome import kept, proved
from dynbench.deploy.targets.profile import Reach
from dynbench.errors import UserError
from dynbench.scratch import scratch

LOOK_S = 0.2


@dataclass(frozen=True)
class Local:
    """The agent as a process of this machine."""

    name: str
    reach: Reach

    @property
    def _python(self) -> str:
        return self.reach.python or sys.executable

    def facts(self) -> dict[str, Any]:
        """Kind, agent and architecture."""
        return {"kind": "local", "agent": self.reach.measures, "architecture": platform.machine()}

    def doctor(self) -> Iterator[Step]:
        """The interpreter and its packages, or the native agent."""
        if self.reach.measures == "native":
            yield self._native()
            return
        try:
            done = subprocess.run(
                [self._python, "-c", PROBE],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            yield Step("python", "missing", f"{self._python} does not start: {e}", "name another with `python = ...`")
            return
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            remedy = f"{self._python} -m pip install numpy onnxruntime"
            yield Step("python", "missing", f"{self._python}: {last}", remedy)
        else:
            yield Step("python", "ok", "Python {}, numpy {}, onnxruntime {}".format(*done.stdout.split()))

    def _agent(self, say: Callable[[str], None] = lambda _: None) -> Agent:
        agent = agent_for(self.reach, self._python, say)
        if isinstance(agent, NativeAgent) and (wrong := agent.misfit(platform.machine(), has_loader=True)):
            raise UserError(f"target {self.name}: {wrong}")
        return agent

    def _native(self) -> Step:
        try:
            agent = self._agent()
            with scratch("target", Path(self.reach.folder) if self.reach.folder else None) as folder:
                copy_agent(agent, folder)
                done = subprocess.run(
                    [agent.start(str(folder))[0], "--version"],
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
        except (UserError, OSError, subprocess.TimeoutExpired) as e:
            return Step("native agent", "missing", str(e), NATIVE_REMEDY)
        return started(done.returncode == 0, done.stdout, done.stderr)

    def run(self, job: Path, agent: str, *, deadline_s: float, progress: Callable[[str], None]) -> Path:
        """Measures a job.

        Raises:
            UserError: another agent is asked for, or its interpreter cannot be started.
            Lost: it did not finish in time.
            Failed: it says that it could not measure, or ended without a result.
        """
        if agent != self.reach.measures:
            raise UserError(f"target {self.name} measures by the agent {self.reach.measures!r}, not {agent!r}")
        asked = read_job(job)
        mine = self._agent(lambda text: progress(f"{self.name}: {text}"))
        with scratch("target", Path(self.reach.folder) if self.reach.folder else None) as folder:
            copy_job(job, [*asked.sha256, JOB], mine, folder)
            log = folder / "agent.log"
            progress(f"{self.name}: measuring {asked.workload}")
            try:
                with log.open("wb") as words:
                    process = subprocess.Popen(
                        mine.start(str(folder)),
                        stdin=subprocess.DEVNULL,
                        stdout=words,
                        stderr=words,
                        start_new_session=True,
                    )
            except OSError as e:
                raise UserError(f"target {self.name}: {mine.program} cannot be started: {e.strerror or e}") from e
            try:
                end = time.monotonic() + deadline_s
                while process.poll() is None and not (folder / RESULT_SHA256).exists():
                    if time.monotonic() > end:
                        raise Lost(f"{self.name}: it did not finish within {deadline_s:.0f} s, and was ended")
                    time.sleep(LOOK_S)
                if not (folder / RESULT_SHA256).exists():
                    raise Failed(f"{self.name}: the agent ended without a result: {last_words(log.read_bytes())}")
                content = (folder / RESULT).read_bytes()
                proved(content, (folder / RESULT_SHA256).read_text(encoding="ascii"), asked, agent, self.name)
            finally:
                _end(process)
        return kept(content, job)


def copy_job(job: Path, names: list[str], agent: Agent, folder: Path) -> None:
    """Copies the files of a job and the agent into a folder.

    Raises:
        UserError: a file is missing, or the disk is full.
    """
    try:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(job / name, folder / name)
        copy_agent(agent, folder)
    except OSError as e:
        raise UserError(f"the job cannot be copied to {folder}: {e.strerror or e}") from e


def copy_agent(agent: Agent, folder: Path) -> None:
    """Copies an agent into a folder, so that it can be started there."""
    for name, place in agent.files.items():
        shutil.copyfile(place, folder / name)
        (folder / name).chmod(0o700)


def last_words(log: bytes) -> str:
    """The last line of what a process wrote; one that hangs until its deadline is ended by the kernel, and silent."""
    lines = [line for line in log.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing: it was killed, such as at its deadline or for want of memory"


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
