"""One trial: a command is killed, started again, and what is left is looked at."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.kills import leftovers
from bench.kills.scene import CACHE, KINDS, LONGEST_S, SETTLE_S, TEMPORARY, Kind, Scene
from dynbench.errors import UserError
from dynbench.store.history import History
from dynbench.store.jsonable import to_json
from dynbench.store.run import Run

TO = ("process group", "process alone")
SIGNALS = {"SIGKILL": 0.9, "SIGTERM": 0.05, "SIGINT": 0.05}
ENDS_S = 60.0  # after a signal that can be handled


@dataclass
class Trial:
    """What was done and what was found.

    Attributes:
        index: from 0.
        command: name of its kind.
        signal: 'SIGKILL', 'SIGTERM', 'SIGINT'.
        to: whom it was sent: 'process group' or 'process alone'.
        fraction: when, of the command's usual duration.
        landed: whether the command still ran then; else nothing else is known.
        exit_code: of the command that was hit; below 0: ended by that signal; None: it did not end within `ENDS_S`.
        recorded: groups (of `train`: finished networks) that were recorded before the next start.
        lost: those of which a cell or its samples were gone after it.
        measured_again: cells that were recorded, and are not the same any more.
        next_exit_code: of the next start; None: it did not end.
        processes: command lines that were still there after the next start.
        worktrees: registered in the repository.
        files: that a run nobody disturbed does not leave.
        missing: files that it does leave.
        faults: anything else that is wrong: what could not be read, a traceback, a damaged database.
    """

    index: int
    command: str
    signal: str
    to: str
    fraction: float
    landed: bool = False
    exit_code: int | None = None
    recorded: int = 0
    lost: list[str] = field(default_factory=list)
    measured_again: list[str] = field(default_factory=list)
    next_exit_code: int | None = None
    processes: list[str] = field(default_factory=list)
    worktrees: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def next_ok(self) -> bool:
        """Whether the next start did what it is for."""
        return self.next_exit_code in KINDS[self.command].good and not self.missing and not self.faults

    @property
    def clean(self) -> bool:
        """Whether nothing was lost and nothing was left."""
        return self.next_ok and not (self.lost or self.processes or self.worktrees or self.files)


def drawn(seed: int, index: int, kinds: list[Kind]) -> Trial:
    """What is to be done in a trial; the same for the same seed."""
    draw = random.Random(f"{seed} {index}")
    (kind,) = draw.choices(kinds, [kind.share for kind in kinds])
    (number,) = draw.choices(list(SIGNALS), list(SIGNALS.values()))
    return Trial(index, kind.name, number, draw.choice(TO), draw.random())


def carry_out(trial: Trial, scene: Scene) -> None:
    """Kills, starts again and looks; fills in the rest of the trial."""
    kind, said = KINDS[trial.command], scene.root / "said.txt"
    scene.reset(kind)
    begun = time.monotonic()
    process = scene.start(kind.first, said)
    try:
        process.wait(trial.fraction * scene.seconds[kind.name])
        scene.seconds[kind.name] = time.monotonic() - begun  # nobody disturbed it, and it is faster than it was
        leftovers.wait_for_processes(scene.mark, SETTLE_S)
        return
    except subprocess.TimeoutExpired:
        trial.landed = True
    trial.exit_code = _hit(process, getattr(signal, trial.signal), trial.to)
    if trial.exit_code is None:
        trial.faults.append(f"did not end within {ENDS_S:.0f} s of {trial.signal}")
    _no_traceback(trial, said, trial.signal)
    begun = [file.stem for file in scene.trial.glob("trained/*.checkpoint")]
    before = _recorded(scene.trial, trial.faults)  # the next start does not wait for what the first left behind
    next_start = scene.start(kind.again(scene.trial), said)
    try:
        trial.next_exit_code = next_start.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        os.killpg(next_start.pid, signal.SIGKILL)
        next_start.wait()
    _no_traceback(trial, said, "the next start")
    words = said.read_text(errors="replace")
    trial.faults += [f"{name} is trained from the beginning" for name in begun if f"{name}: epoch 1 of" in words]
    if trial.next_exit_code not in kind.good:
        trial.faults.append(f"the next start said: {words.strip()[-500:]}")
    trial.processes = list(leftovers.wait_for_processes(scene.mark, SETTLE_S).values())
    leftovers.end_processes(scene.mark)
    _compare(trial, before, _recorded(scene.trial, trial.faults))
    _look(trial, scene)


def _hit(process: subprocess.Popen[bytes], number: signal.Signals, to: str) -> int | None:
    """Sends a signal and waits for the end."""
    if to == "process group":
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    try:
        return process.wait(ENDS_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _no_traceback(trial: Trial, said: Path, when: str) -> None:
    if "Traceback (most recent call last)" in (text := said.read_text(errors="replace")):
        trial.faults.append(f"a traceback after {when}: {text.strip().splitlines()[-1][:200]}")


@dataclass(frozen=True)
class _Group:
    """Stored cells, as digests by id, and the arms that have samples."""

    cells: dict[str, str]
    arms: frozenset[str]


def _recorded(folder: Path, faults: list[str]) -> dict[str, _Group]:
    """What is recorded in a trial's folder, by name: groups of its run directory, and networks that are trained.

    What cannot be read is added to `faults`.
    """
    if (folder / "trained").is_dir():
        return _trained(folder / "trained")
    if not (folder / "out" / "manifest.json").exists():
        return {}
    groups: dict[str, _Group] = {}
    try:
        run = Run.open(folder / "out")
        for name in dict.fromkeys(cell.group_id for cell in run.cells):
            cells = [cell for cell in run.cells if cell.group_id == name and cell.status != "interrupted"]
            if cells:
                digests = {cell.cell_id: hashlib.sha256(to_json(cell).encode()).hexdigest() for cell in cells}
                groups[name] = _Group(digests, frozenset(run.samples(name)["arm"]))
                measured = {cell.arm.key for cell in cells if cell.status == "ok"}
                if lacking := measured - groups[name].arms:
                    faults.append(f"{name} has no samples of {', '.join(sorted(lacking))}")
    except UserError as e:
        faults.append(str(e))
    return groups


def _trained(folder: Path) -> dict[str, _Group]:
    """Networks with weights and card."""
    found = {}
    for card in folder.glob("*.json"):
        files = [card, card.with_suffix(".safetensors")]
        if all(file.is_file() for file in files):
            digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
            found[card.stem] = _Group(digests, frozenset())
    return found


def _compare(trial: Trial, before: dict[str, _Group], after: dict[str, _Group]) -> None:
    trial.recorded = len(before)
    for name, group in before.items():
        now = after.get(name, _Group({}, frozenset()))
        if not group.cells.keys() <= now.cells.keys() or not group.arms <= now.arms:
            trial.lost.append(name)
        trial.measured_again += [cell for cell, digest in group.cells.items() if now.cells.get(cell, digest) != digest]


def _look(trial: Trial, scene: Scene) -> None:
    """What is left in the scene, and what is missing."""
    usual, found = set(scene.names["run" if trial.command == "run --resume" else trial.command]), set(scene.found())
    trial.files = sorted(found - usual)
    trial.missing = sorted(name for name in usual - found if not name.startswith((TEMPORARY, CACHE)))
    if (repository := scene.trial / "repo").is_dir():
        trial.worktrees = leftovers.worktrees(repository)
    if (database := scene.trial / "history.sqlite").exists():
        trial.faults += _faults_of(database, trial.command)


def _faults_of(database: Path, command: str) -> list[str]:
    """What is wrong with a history database."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(database)) as connection:
        ((word,),) = connection.execute("PRAGMA integrity_check").fetchmany(1)
    if word != "ok":
        return [f"the history database is damaged: {word}"]
    try:
        history = History.open(str(database))
        if command == "check":
            return [] if history.checks() else ["the check is not in the history"]
        here = database.parent
        wanted = sorted(len(Run.open(folder).cells) for folder in (here / "out", here.parent / "earlier"))
        stored = sorted(cells for _, _, cells in history.runs())
    except UserError as e:
        return [str(e)]
    return [] if stored == wanted else [f"the history has runs of {stored} cells instead of {wanted}"]
