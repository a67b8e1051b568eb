"""The measuring of a check: laps in sets.

A lap asks every role for every batch of the stream, in turns of a few batches; a ratio is that of a lap's totals. Only
one process runs at a time, the others wait. A set has fresh processes.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from dynbench.devices.cpu import Cpu
from dynbench.devices.witnesses import Watch, Witnesses
from dynbench.experiment.sides import Child, Role, blame
from dynbench.experiment.trees import CannotTell

LEAST_FIRST, LEAST_FRESH = 3, 2  # sets of a series, also where the time is over
FIRST, FRESH = 6, 4  # at least, where there is time for them
FIRST_SHARE = 0.6  # of the time, for the first series
SET_S, PREPARING = 0.6, 4.0  # a set times for so long at least, and for so many times as long as it prepares
WARM_UP_LAPS, MIN_LAPS = 1, 2
TURN_NS = 25e6  # a turn of short batches takes at least about so long
SAY_S = 5.0  # how often it says where it is
ORDERS = list(permutations(range(3)))  # one for all of a set: nobody follows itself and finds its caches warm
Say = Callable[[str], None]


@dataclass
class Series:
    """Laps so far: per set, per cell, totals [laps, 3] in ns."""

    sets: list[dict[int, np.ndarray]] = field(default_factory=list)

    def ratios(self, cell: int, above: int, fresh: int = 0) -> list[np.ndarray]:
        """Per set, role `above` over role 0; of the sets from `fresh` on."""
        found = [s[cell] for s in self.sets[fresh:] if cell in s]
        return [totals[:, above] / totals[:, 0] for totals in found]


class Laps:
    """Measures until the time is over.

    Args:
        roles: the base, the head, and the base again.
        scratch: folder for files that the sides write.
        begin: when the check began, of `time.monotonic`.
        seconds: for all of it.
        threads: of every side.
        device: 'cpu', 'cuda:0', ...
        say: told how it goes on.

    Attributes:
        series: what was timed.
        first_sets: how many of its sets belong to the first series.
        names: of the cells.
        stream_hash: of the inputs.
        exact: per cell and role that was asked: what does not depend on the clock, and the file of the answers.
        witnesses: of every set, while it was timed.
    """

    def __init__(
        self, roles: list[Role], scratch: Path, begin: float, seconds: float, threads: int, device: str, say: Say
    ) -> None:  # fmt: skip
        self._roles, self._scratch, self._begin, self._seconds, self._say = roles, scratch, begin, seconds, say
        self._cores = own_cores(threads) if device == "cpu" else None
        self._preparing_s = 0.0
        self._told: dict[str, Any] = {}  # the head, of its cells
        self._turns: dict[int, tuple[int, bool]] = {}  # per cell: batches, and whether an untimed one goes before
        self._said_s = -math.inf
        self.series = Series()
        self.first_sets = 0
        self.names: list[str] = []
        self.stream_hash = ""
        self.exact: list[dict[int, tuple[dict[str, Any], Path]]] = []
        self.witnesses: list[Witnesses] = []

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def first(self, exact_of: list[int]) -> None:
        """The first series, of all cells; its first set also asks the roles `exact_of` what the clock does not say."""
        self._sets(LEAST_FIRST, FIRST, self._seconds * FIRST_SHARE, None, exact_of)
        self.first_sets = len(self.series.sets)

    def fresh(self, cells: list[int]) -> None:
        """The second series, of the cells that need it."""
        self._sets(LEAST_FRESH, FRESH, self._seconds, cells, [])

    def _sets(self, least: int, fair: int, until_s: float, cells: list[int] | None, exact_of: list[int]) -> None:
        done = 0
        while done < least or self._elapsed + self._preparing_s + SET_S < until_s:
            self._set(max(fair - done, 1), until_s, cells, exact_of if done == 0 else [])
            done += 1
            if self._elapsed - self._said_s > SAY_S:
                self._said_s = self._elapsed
                self._say(f"set {len(self.series.sets)}, {self._elapsed:.0f} s of {self._seconds:.0f}")

    def _set(self, missing: int, until_s: float, cells: list[int] | None, exact_of: list[int]) -> None:
        began = self._elapsed
        children = [role.nursery.fork() for role in self._roles]
        try:
            self._prepare(children)
            if exact_of:
                self._exact(children, exact_of)
            else:
                self._preparing_s = self._elapsed - began
            fair_s = (until_s - self._elapsed) / missing - (missing - 1) / missing * self._preparing_s
            share_s = max(SET_S, min(PREPARING * self._preparing_s, fair_s))
            chosen = list(range(len(self.names))) if cells is None else cells
            self.series.sets.append(self._laps(children, chosen, min(self._elapsed + share_s, until_s)))
        finally:
            for child in children:
                with contextlib.suppress(OSError):
                    child.close()

    def _prepare(self, children: list[Child]) -> None:
        waves = (
            [[0, 1, 2]] if self._told else [[0, 1], [2]]
        )  # what the first makes, the second base need not make again
        told: dict[int, dict[str, Any]] = {}
        for wave in waves:
            for who in wave:
                children[who].send("prepare", cores=self._cores, **self._roles[who].prepare)
            for who in wave:
                with blame(self._roles[who]):
                    told[who] = children[who].receive()
        if not self._told:
            self._check_sides(told)
            self._told = told[1]
            self.names, self.stream_hash = [c["name"] for c in told[1]["cells"]], told[1]["stream_hash"]

    def _check_sides(self, told: dict[int, dict[str, Any]]) -> None:
        for who, role in enumerate(self._roles):
            answer = told[who]
            if answer["foreign"]:
                raise CannotTell(
                    f"{role.name}: first-party code is not taken from its own tree but from elsewhere: "
                    f"{', '.join(answer['foreign'][:3])}; an installed copy shadows it: uninstall that"
                )
        one, other = told[0], told[1]
        if one["stream_hash"] != other["stream_hash"]:
            raise CannotTell(
                f"the inputs are others than the base's ({other['stream_hash'][:12]} and {one['stream_hash'][:12]}): "
                "times of different inputs say nothing about the code"
            )
        if one["cells"] != other["cells"]:
            names = [[c["name"] for c in t["cells"]] for t in (one, other)]
            raise CannotTell(f"base and head measure different cells: {names[0]} and {names[1]}; name them: --strategy")

    def _laps(self, children: list[Child], cells: list[int], until_s: float) -> dict[int, np.ndarray]:
        laps: dict[int, list[list[int]]] = {cell: [] for cell in cells}
        lap, order = -WARM_UP_LAPS, ORDERS[len(self.series.sets) % len(ORDERS)]
        watch = Watch(Cpu())
        while lap < MIN_LAPS or self._elapsed < until_s:
            for cell in cells:
                totals = self._lap(children, cell, order)
                if lap >= 0:
                    laps[cell].append(totals)
            lap += 1
        self.witnesses.append(watch.end())
        return {cell: np.array(rows, np.float64) for cell, rows in laps.items()}

    def _lap(self, children: list[Child], cell: int, order: tuple[int, ...]) -> list[int]:
        """Totals in ns, of each role."""
        batches = int(self._told["cells"][cell]["batches"])
        count, warm = self._turns.get(cell, (1, True))
        totals = [0, 0, 0]
        for first in range(0, batches, count):
            for who in order:
                with blame(self._roles[who]):
                    asked = children[who].ask("call", cell=cell, first=first, count=count, warm=warm)
                    totals[who] += asked["ns"]
        if cell not in self._turns:
            each = totals[0] / batches
            self._turns[cell] = (min(math.ceil(TURN_NS / each), batches), each < TURN_NS)
        return totals

    def _exact(self, children: list[Child], asked: list[int]) -> None:
        for cell in range(len(self.names)):
            files = {who: self._scratch / f"answers-{cell}-{who}.safetensors" for who in asked}
            for who in asked:
                children[who].send("exact", cell=cell, answers_to=str(files[who]))
            found = {}
            for who in asked:
                with blame(self._roles[who]):
                    found[who] = (children[who].receive(), files[who])
            self.exact.append(found)


def own_cores(threads: int) -> list[int] | None:
    """Cores for the side whose turn it is: no more than it uses, so that it finds them where it left them.

    Without this the system moves the sides from core to core; on a small network that doubled the noise of a lap.
    None: all there are, or the system has no such thing.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return usable[-threads:] if threads < len(usable) else None
