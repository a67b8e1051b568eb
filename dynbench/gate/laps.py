"""The measuring of a check: laps in sets.

In a lap every participant runs every batch of the stream, in turns of a few batches; ratios are those of a lap's
totals. Only one process runs at a time, the others wait. Every set has fresh processes.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from dynbench.devices.cpu import Cpu
from dynbench.devices.witnesses import Watch, Witnesses
from dynbench.gate.cells import GateCell
from dynbench.gate.exact import run_twice
from dynbench.gate.revisions import Revision, RevisionProcess, blame
from dynbench.gate.trees import CannotTell

BASE, HEAD, AGAIN = range(3)  # the participants: the base takes part twice
MIN_SETS_FIRST, MIN_SETS_FRESH = 3, 2  # of a series, even if the time is over
GOAL_SETS_FIRST, GOAL_SETS_FRESH = 6, 4  # of a series, if there is time for them
FIRST_SHARE = 0.6  # of the time, for the first series
SET_S, PREPARING = 0.6, 4.0  # a set measures for at least so long, and for so many times as long as it prepares
WARM_UP_LAPS, MIN_LAPS = 1, 2
TURN_NS = 25e6  # a turn of short batches takes at least about so long
SAY_S = 5.0  # between two sentences about the progress
ORDERS = list(
    permutations(range(3))
)  # the same in all laps of a set: no process follows itself and finds its caches warm
Say = Callable[[str], None]


@dataclass
class Series:
    """The laps so far: per set, per cell, totals [laps, 3] in ns."""

    sets: list[dict[int, np.ndarray]] = field(default_factory=list)

    def ratios(self, cell: int, participant: int, first_set: int = 0) -> list[np.ndarray]:
        """Per set from `first_set` on: times of a participant over those of the base."""
        found = [s[cell] for s in self.sets[first_set:] if cell in s]
        return [totals[:, participant] / totals[:, BASE] for totals in found]


@dataclass(frozen=True)
class Exact:
    """What one participant counts of a cell.

    Attributes:
        facts: totals by the name of the quantity, and `decisions`.
        answers: file of the answers.
        random: what differs where the same process runs the same inputs again, 'decisions' or 'answers', and how.
    """

    facts: dict[str, Any]
    answers: Path
    random: dict[str, str]

    def differs(self, other: Exact) -> dict[str, str]:
        """What is not the same in another process of the same network, and how; like `random`."""
        decisions = (str(self.facts["decisions"]), str(other.facts["decisions"]))
        return run_twice(decisions, (load_file(self.answers), load_file(other.answers)))


class Laps:
    """Measures until the time is over.

    Args:
        revisions: the base, the head, and the base again.
        scratch: folder for files that their processes write.
        begin: when the check began, by `time.monotonic`.
        seconds: for the whole check.
        threads: of every process.
        device: 'cpu', 'cuda:0', ...
        say: called with sentences about the progress.

    Attributes:
        series: what was timed.
        first_sets: how many of its sets belong to the first series.
        cells: what is measured.
        stream_hash: of the inputs.
        exact: per cell, by participant, of those that were asked.
        witnesses: of every set, while it was timed.
    """

    def __init__(
        self,
        revisions: Sequence[Revision],
        scratch: Path,
        begin: float,
        seconds: float,
        threads: int,
        device: str,
        say: Say,
    ) -> None:
        self._revisions, self._scratch, self._begin, self._seconds, self._say = revisions, scratch, begin, seconds, say
        self._cores = own_cores(threads) if device == "cpu" else None
        self._preparing_s = 0.0
        self._turns: dict[int, tuple[int, bool]] = {}  # per cell: batches, and whether an untimed one goes before
        self._said_s = -math.inf
        self._check: Callable[[list[GateCell], str], None] | None = None
        self.series = Series()
        self.first_sets = 0
        self.cells: list[GateCell] = []
        self.stream_hash = ""
        self.exact: list[dict[int, Exact]] = []
        self.witnesses: list[Witnesses] = []

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begin

    def first(self, *counted: int, check: Callable[[list[GateCell], str], None] | None = None) -> None:
        """The first series, of all cells.

        Args:
            counted: the participants that count in the first set what does not depend on the clock. The first of them,
                which the others are judged by, does it in the second set again, and must find the same.
            check: is called with the cells and the stream hash before anything is measured, and may raise.

        Raises:
            UserError: the head cannot be measured.
            CannotTell: there is nothing to compare, a participant failed, or the one that the others are judged by is
                not deterministic.
        """
        self._check = check
        self._sets(MIN_SETS_FIRST, GOAL_SETS_FIRST, self._seconds * FIRST_SHARE, None, counted)
        self.first_sets = len(self.series.sets)

    def fresh(self, cells: list[int]) -> None:
        """The second series, of the cells that need it.

        Raises:
            CannotTell: a participant failed.
        """
        self._sets(MIN_SETS_FRESH, GOAL_SETS_FRESH, self._seconds, cells, ())

    def _sets(self, least: int, goal: int, until_s: float, cells: list[int] | None, counted: Sequence[int]) -> None:
        done = 0
        while done < least or self._elapsed_s + self._preparing_s + SET_S < until_s:
            count = {0: counted, 1: counted[:1]}.get(done, ())
            self._set(max(goal - done, 1), until_s, cells, count)
            done += 1
            if self._elapsed_s - self._said_s > SAY_S:
                self._said_s = self._elapsed_s
                self._say(f"set {len(self.series.sets)}, {self._elapsed_s:.0f} s of {self._seconds:.0f}")

    def _set(self, missing: int, until_s: float, cells: list[int] | None, counted: Sequence[int]) -> None:
        began_s = self._elapsed_s
        with self._fresh_processes() as processes:
            self._prepare(processes)
            if self.series.sets:  # in the first one the stream was made
                self._preparing_s = self._elapsed_s - began_s
            self._count(processes, counted)
            fair_s = (until_s - self._elapsed_s) / missing - (missing - 1) / missing * self._preparing_s
            share_s = max(SET_S, min(PREPARING * self._preparing_s, fair_s))
            chosen = list(range(len(self.cells))) if cells is None else cells
            self.series.sets.append(self._laps(processes, chosen, min(self._elapsed_s + share_s, until_s)))

    @contextlib.contextmanager
    def _fresh_processes(self) -> Iterator[list[RevisionProcess]]:
        with contextlib.ExitStack() as stack:
            processes = []
            for revision in self._revisions:
                with blame(revision.name):
                    processes.append(revision.fork())
                stack.callback(processes[-1].close)
            yield processes

    def _prepare(self, processes: list[RevisionProcess]) -> None:
        begun = bool(self.cells)
        # In the first set the base takes its second part later: what its first process makes need not be made again.
        waves = [[BASE, HEAD, AGAIN]] if begun else [[BASE, HEAD], [AGAIN]]
        answers: dict[int, dict[str, Any]] = {}
        for wave in waves:
            for who in wave:
                processes[who].send("prepare", cores=self._cores, **self._revisions[who].request)
            for who in sorted(wave, key=lambda who: who != HEAD):  # what is wrong in both can be put right in the head
                with blame(self._revisions[who].name):
                    answers[who] = processes[who].receive()
        if not begun:
            self._check_comparable([answers[who] for who in (BASE, HEAD, AGAIN)])
            self.cells = [GateCell.model_validate(c) for c in answers[HEAD]["cells"]]
            self.stream_hash = answers[HEAD]["stream_hash"]
            if self._check is not None:
                self._check(self.cells, self.stream_hash)

    def _check_comparable(self, answers: list[dict[str, Any]]) -> None:
        for revision, answer in zip(self._revisions, answers, strict=True):
            if answer["foreign"]:
                raise CannotTell(
                    f"{revision.name}: first-party code is not taken from its own tree but from elsewhere: "
                    f"{', '.join(answer['foreign'][:3])}; an installed copy shadows it: uninstall that"
                )
        base, head = answers[BASE], answers[HEAD]
        if base["stream_hash"] != head["stream_hash"]:
            raise CannotTell(
                f"the inputs differ from the base's ({head['stream_hash'][:12]} and {base['stream_hash'][:12]}): "
                "times of different inputs say nothing about the code"
            )
        if base["cells"] != head["cells"]:
            names = [[GateCell.model_validate(c).name for c in answer["cells"]] for answer in (base, head)]
            raise CannotTell(f"base and head measure different cells: {names[0]} and {names[1]}; name them: --strategy")

    def _laps(self, processes: list[RevisionProcess], cells: list[int], until_s: float) -> dict[int, np.ndarray]:
        laps: dict[int, list[list[int]]] = {cell: [] for cell in cells}
        lap, order = -WARM_UP_LAPS, ORDERS[len(self.series.sets) % len(ORDERS)]
        watch = Watch(Cpu())
        while lap < MIN_LAPS or self._elapsed_s < until_s:
            for cell in cells:
                totals = self._lap(processes, cell, order)
                if lap >= 0:
                    laps[cell].append(totals)
            lap += 1
        self.witnesses.append(watch.end())
        return {cell: np.array(rows, np.float64) for cell, rows in laps.items()}

    def _lap(self, processes: list[RevisionProcess], cell: int, order: tuple[int, ...]) -> list[int]:
        """Totals of the participants in ns."""
        batches = self.cells[cell].batches
        count, warm = self._turns.get(cell, (1, True))
        totals = [0, 0, 0]
        for first in range(0, batches, count):
            for who in order:
                with blame(self._revisions[who].name):
                    answer = processes[who].ask("call", cell=cell, first=first, count=count, warm=warm)
                    totals[who] += answer["ns"]
        if cell not in self._turns:
            each = totals[BASE] / batches
            self._turns[cell] = (min(math.ceil(TURN_NS / each), batches), each < TURN_NS)
        return totals

    def _count(self, processes: list[RevisionProcess], counted: Sequence[int]) -> None:
        first = not self.exact
        for cell in range(len(self.cells) if counted else 0):
            found = {}
            files = {who: self._scratch / f"answers-{cell}-{who}-{first:d}.safetensors" for who in counted}
            for who in counted:
                processes[who].send("exact", cell=cell, answers_to=str(files[who]))
            for who in counted:
                with blame(self._revisions[who].name):
                    answer = processes[who].receive()
                found[who] = Exact(answer["facts"], files[who], answer["random"])
            reference = counted[0]
            random = found[reference].random if first else self.exact[cell][reference].differs(found[reference])
            self._check_deterministic(reference, random)
            if first:
                self.exact.append(found)

    def _check_deterministic(self, who: int, random: dict[str, str]) -> None:
        if random:
            differ = " and ".join(f"its {what} ({how})" for what, how in random.items())
            raise CannotTell(
                f"the network of the {self._revisions[who].name} is not deterministic: two runs on the same inputs "
                f"differ in {differ}, so a change of them says nothing about the code; switch off what draws random "
                "numbers at evaluation, such as dropout or noise in a gate"
            )


def own_cores(threads: int) -> list[int] | None:
    """Cores for the process whose turn it is: as many as it has threads, so that it finds them as it left them.

    Without this the system moves the processes from core to core; on a small network that doubled the noise of a lap.

    Returns:
        None: all that there are, or the system cannot bind processes to cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return usable[-threads:] if threads < len(usable) else None
