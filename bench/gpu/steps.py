"""Commands one after the other, each with a limit of its own and all with one: what was found so far is never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dynbench.files import write_text

GRACE_S = 20.0  # after Ctrl-C, in which a run writes what it has
LEAST_S = 5.0  # of a step
RESULTS = "steps.json"


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: of its log, too.
        command: program and arguments.
        most_s: seconds after which it is interrupted.
        environment: variables beside those of this process.
    """

    name: str
    command: Sequence[str]
    most_s: float
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        name: of the step.
        status: 'ok', 'failed', 'cut off' (it reached its limit) or 'left out' (the time of all was over).
        seconds: that it took.
        why: in words, where the status is not 'ok'.
        log: file of all that it printed; None: it was left out.
        command: as it was called.
    """

    name: str
    status: str
    seconds: float
    why: str
    log: str | None
    command: list[str]


def play(steps: Sequence[Step], out: Path, seconds: float, say: Callable[[str], None] = print) -> list[Outcome]:
    """Runs the steps; `steps.json` and the steps' logs are complete after each of them.

    Args:
        steps: in order.
        out: folder, which exists.
        seconds: for all of them.
        say: is told of each step.
    """
    end, found = time.monotonic() + seconds, list[Outcome]()
    for step in steps:
        left = end - time.monotonic()
        if left < LEAST_S:
            found.append(Outcome(step.name, "left out", 0.0, "the time was over", None, list(step.command)))
        else:
            say(f"{step.name}: {' '.join(step.command)}")
            found.append(_played(step, out, min(step.most_s, left)))
        one = found[-1]
        say(f"  {one.status}, {one.seconds:.0f} s" + (f": {one.why}" if one.why else ""))
        write_text(out / RESULTS, json.dumps([asdict(o) for o in found], indent=1) + "\n")
    return found


def _played(step: Step, out: Path, limit_s: float) -> Outcome:
    """A step in a process group of its own, so that what it starts ends with it."""
    log, begin = out / f"{step.name}.txt", time.monotonic()
    status, why = "ok", ""
    with log.open("wb") as file:
        process = subprocess.Popen(
            step.command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(step.environment),
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status, why = "cut off", f"interrupted after {limit_s:.0f} s"
            code = _ended(process)
        except BaseException:
            _ended(process)
            raise
    if status == "ok" and code:
        status, why = "failed", f"exit code {code}; {' '.join(_last_lines(log, 1)) or 'it printed nothing'}"
    return Outcome(step.name, status, round(time.monotonic() - begin, 1), why, log.name, list(step.command))


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Ctrl-C, and after a while the end of the whole group; returns the exit code."""
    try:
        os.killpg(process.pid, signal.SIGINT)
        return process.wait(GRACE_S)
    except ProcessLookupError:
        return process.wait()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _last_lines(log: Path, count: int) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()][-count:]


def told(found: Sequence[Outcome]) -> Iterator[str]:
    """Lines of a table."""
    for one in found:
        yield f"{one.name:<20} {one.status:<9} {one.seconds:5.0f} s  {one.why}"
