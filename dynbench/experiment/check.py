"""The CI gate: base and head measured interleaved in the same job, each in its own processes from its own tree.

A lap calls every side for every batch of the stream, in an order that goes round; a ratio is that of a lap's totals.
Only one process runs at a time, the others wait for their turn. The base takes part twice: its two sides tell how
small a difference can be seen. Laps come in sets, each with fresh processes, and a difference has to show in a second
series of sets before it is said.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from dynbench.analysis.judge import Judgement, judge
from dynbench.analysis.resolution import doubts, resolution
from dynbench.analysis.statistics import nested_interval, quotient
from dynbench.devices.cpu import Cpu, cpu_model, governor
from dynbench.devices.witnesses import Watch
from dynbench.devices.witnesses import Witnesses as Seen
from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.environment import THREAD_VARIABLES
from dynbench.experiment.spec import Options, load_spec
from dynbench.experiment.trees import (
    CannotTell,
    commit_of,
    dependencies_differ,
    environment_of,
    first_party,
    git,
    source_path,
    top_level,
    worktree,
)
from dynbench.store.files import write_text
from dynbench.store.gate import CellCheck, ExactChange, Gate
from dynbench.store.schema import Interval, Unavailable, Witnesses

SETS, FRESH_SETS = 10, 5  # of the first series and of the second one, where there is time for them
LEAST_SETS = 3  # of the first series; 2 of the second one
FIRST_SHARE = 0.62  # of the time, for the first series
WARM_UP_LAPS, MIN_LAPS = 1, 3
ANSWERS = 1e-4  # share of the largest value up to which an answer counts as the same
START_S = 120.0  # importing torch on a busy machine
CALL_S = 300.0  # one batch, or preparing a workload
ORDERS = list(permutations(range(3)))
ACCEPTED = ("answers", "decisions", "work")
WORK = ("executed FLOPs", "required FLOPs", "operator calls", "host waits")
Say = Callable[[str], None]


class SideError(DynbenchError):
    """A side could not do what it was asked; `kind` names the exception there."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class Child:
    """A forked process of one side."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(CALL_S)
        self._connection, self._channel = connection, connection.makefile("rw", encoding="utf-8")

    def send(self, do: str, **what: Any) -> None:
        """Asks for something; the answer comes by `receive`."""
        with contextlib.suppress(BrokenPipeError):
            self._channel.write(json.dumps({"do": do, **what}) + "\n")
            self._channel.flush()

    def receive(self) -> dict[str, Any]:
        """The answer.

        Raises:
            SideError: there is none.
        """
        try:
            line = self._channel.readline()
        except (TimeoutError, ConnectionError) as e:
            raise SideError(f"the process does not answer ({e})", "Died") from e
        if not line:
            raise SideError("the process died", "Died")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"], answer["kind"])
        return answer

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """`send` and `receive`."""
        self.send(do, **what)
        return self.receive()

    def close(self) -> None:
        """It ends when nobody can ask any more."""
        self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class Nursery:
    """A process that has imported torch and forks the others of its side."""

    def __init__(self, python: str, tree: Path, threads: int, folder: Path) -> None:
        threads_of = dict.fromkeys(THREAD_VARIABLES, str(threads))
        env = {**os.environ, **threads_of, "PYTHONHASHSEED": "0", "PYTHONPATH": source_path(tree)}
        self._address = str(folder / "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._address)
        self._listener.listen()
        self._words = folder / "stderr"
        with self._words.open("w") as words:
            self._process = subprocess.Popen(
                [python, "-m", "dynbench.experiment.side"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=words, text=True, env=env, start_new_session=True, cwd=tree,
            )  # fmt: skip

    def ready(self) -> None:
        """Waits until it is.

        Raises:
            SideError: it ended.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._process.wait()
            words = self._words.read_text(errors="replace").strip().splitlines() or ["no reason given"]
            raise SideError(f"its process does not start: {words[-1]}", "Died")

    def fork(self) -> Child:
        """A fresh process."""
        assert self._process.stdin is not None
        self._process.stdin.write(self._address + "\n")
        self._process.stdin.flush()
        self._listener.settimeout(START_S)
        return Child(self._listener.accept()[0])

    def close(self) -> None:
        """Ends it."""
        self._listener.close()
        self._process.kill()
        self._process.wait()


@dataclass
class Role:
    """One of the three that take part in a lap.

    Attributes:
        name: for messages.
        nursery: whose processes.
        prepare: what they are asked to prepare.
    """

    name: str
    nursery: Nursery
    prepare: dict[str, Any]


@dataclass
class Series:
    """Laps so far: per set, per cell, totals [laps, 3] in ns."""

    sets: list[dict[int, np.ndarray]] = field(default_factory=list)

    def ratios(self, cell: int, above: int, fresh: int = 0) -> list[np.ndarray]:
        """Per set, role `above` over role 0; of the sets from `fresh` on."""
        found = [s[cell] for s in self.sets[fresh:] if cell in s]
        return [totals[:, above] / totals[:, 0] for totals in found]


def check(
    workload: str,
    options: Options,
    *,
    base: str | None,
    baseline: Path | None = None,
    save: Path | None = None,
    seconds: float = 60.0,
    matters: float = 0.03,
    accept: Sequence[str] = (),
    same_environment: bool = False,
    say: Say = lambda text: None,
) -> Gate:
    """Measures whether the head is slower than the base.

    Args:
        workload: a file of the repository, or the name of a workload that comes with dynbench.
        options: device, threads, strategies and batch sizes.
        base: a revision.
        baseline: instead of a base: a file that `save` wrote. Then the head is compared with a static network, its
            primary baseline, now and then.
        save: writes such a file.
        seconds: for everything.
        matters: smallest change of time that matters, as a share.
        accept: of 'answers', 'decisions', 'work': what may change without being a regression.
        same_environment: do not install other dependencies for the base.
        say: told how it goes on.

    Raises:
        UserError: bad use.
        CannotTell: there is no outcome, for a reason that lies in the base or the machine.
    """
    started, begin = datetime.datetime.now(datetime.UTC), time.monotonic()
    spec = load_spec(workload)
    request = {"options": options.model_dump(mode="json")}
    stored = None if baseline is None else _stored(baseline)
    with contextlib.ExitStack() as stack:

        def nursery(python: str, tree: Path) -> Nursery:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            made = Nursery(python, tree, options.threads, folder)
            stack.callback(made.close)
            return made

        if base is None:
            root = _root_or_folder(spec.file)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dynbench-check-")))
            names = first_party(root)
            one, mine, two = (nursery(sys.executable, root) for _ in range(3))
            kept = str(scratch / "head.npz")
            head = {**request, "file": str(spec.file), "tree": str(root), "names": names, "stream_file": kept}
            static, dynamic = ({**head, "static": flag} for flag in (True, False))
            against = "its static baseline"
            roles = [Role(against, one, static), Role("head", mine, dynamic), Role(against, two, static)]
            base_name, head_name = (str(baseline) if baseline else against), _revision(root)
        else:
            root = top_level(spec.file.parent)
            if not spec.file.is_relative_to(root):
                raise UserError(f"{spec.file} does not lie in the repository {root}")
            commit = commit_of(root, base)
            tree = stack.enter_context(worktree(root, commit))
            scratch = tree.parent  # goes with the worktree, also where this process is killed
            file = tree / spec.file.relative_to(root)
            if not file.is_file():
                raise CannotTell(f"{base} has no {spec.file.relative_to(root)}: there is nothing to compare with")
            python = sys.executable
            if not same_environment and (differ := dependencies_differ(tree, root)):
                say(f"{', '.join(differ)} differ: an environment for the base (cached)")
                python = str(environment_of(tree))
            names = first_party(tree, root)
            theirs, ours, again = nursery(python, tree), nursery(sys.executable, root), nursery(python, tree)
            common = {**request, "names": names, "static": False}
            before = {**common, "file": str(file), "tree": str(tree), "stream_file": str(scratch / "base.npz")}
            after = {**common, "file": str(spec.file), "tree": str(root), "stream_file": str(scratch / "head.npz")}
            roles = [Role("base", theirs, before), Role("head", ours, after), Role("base", again, before)]
            base_name, head_name = f"{base} ({commit[:8]})", _revision(root)
        for role in roles:
            with _of(role):
                role.nursery.ready()
        session = _Session(roles, scratch, begin, seconds, say)
        session.first(against_base=base is not None)
        cells = _judge(session, stored, options, matters, set(accept))
    gate = Gate(
        workload=spec.name, title=spec.title, base=base_name, head=head_name, machine=cpu_model(),
        device=options.device, threads=options.threads, started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - begin, matters=matters, cells=cells,
        warnings=doubts(_seen(session.witnesses), None),
    )  # fmt: skip
    if save is not None:
        _save(save, gate, session)
    return gate


@contextlib.contextmanager
def _of(role: Role) -> Iterator[None]:
    """Says whose fault an error is."""
    try:
        yield
    except SideError as e:
        if role.name == "head" and e.kind in ("UserError", "ValueError"):
            raise UserError(str(e)) from e
        raise CannotTell(f"{role.name}: {e}") from e


class _Session:
    """The measuring of a check."""

    def __init__(self, roles: list[Role], scratch: Path, begin: float, seconds: float, say: Say) -> None:
        self._roles, self._scratch, self._begin, self._seconds, self._say = roles, scratch, begin, seconds, say
        self._preparing_s = 1.0
        self.witnesses: list[Seen] = []  # of every set, while it was timed
        self.first_sets = 0
        self.series = Series()
        self.names: list[str] = []
        self.stream_hash = ""
        self.exact: list[list[ExactChange]] = []
        self.facts: list[dict[str, Any]] = []  # the head's, per cell

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def first(self, *, against_base: bool) -> None:
        """The first series of sets, with what does not depend on the clock."""
        for n in range(SETS):
            until_s = self._seconds * FIRST_SHARE
            if n < LEAST_SETS or self._elapsed + self._preparing_s < until_s:
                self._set(n, SETS, until_s, exact=n == 0, against_base=against_base)
        self.first_sets = len(self.series.sets)

    def fresh(self, cells: list[int]) -> None:
        """The second series, of the cells that need it."""
        for n in range(FRESH_SETS):
            if n < 2 or self._elapsed + self._preparing_s < self._seconds:
                self._set(n, FRESH_SETS, self._seconds, cells=cells)

    def _set(
        self, n: int, of: int, until_s: float, *, cells: list[int] | None = None, exact: bool = False,
        against_base: bool = False,
    ) -> None:  # fmt: skip
        began = self._elapsed
        children = [role.nursery.fork() for role in self._roles]
        try:
            told = self._prepare(children)
            if not self.names:
                self._check_sides(told)
                self.names, self.stream_hash = [c["name"] for c in told[1]["cells"]], told[1]["stream_hash"]
            if exact:
                self._exact(children, against_base)
            chosen = list(range(len(self.names))) if cells is None else cells
            batches = [c["batches"] for c in told[1]["cells"]]
            prepared = self._elapsed
            if not exact:
                self._preparing_s = prepared - began
            left = of - n  # sets of this series, this one included
            share_s = max((until_s - prepared - (left - 1) * self._preparing_s) / left, 0.0)
            self.series.sets.append(self._laps(children, chosen, batches, prepared + share_s))
            laps = len(next(iter(self.series.sets[-1].values())))
            self._say(f"set {len(self.series.sets)}: {laps} laps, {self._elapsed:.0f} s of {self._seconds:.0f}")
        finally:
            for child in children:
                with contextlib.suppress(OSError):
                    child.close()

    def _prepare(self, children: list[Child]) -> list[dict[str, Any]]:
        for child, role in zip(children, self._roles, strict=True):
            child.send("prepare", **role.prepare)
        told = []
        for child, role in zip(children, self._roles, strict=True):
            with _of(role):
                told.append(child.receive())
        return told

    def _check_sides(self, told: list[dict[str, Any]]) -> None:
        for role, answer in zip(self._roles, told, strict=True):
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

    def _laps(
        self, children: list[Child], cells: list[int], batches: list[int], until_s: float
    ) -> dict[int, np.ndarray]:
        laps: dict[int, list[list[int]]] = {cell: [] for cell in cells}
        lap = -WARM_UP_LAPS
        watch = Watch(Cpu())
        while lap < MIN_LAPS or self._elapsed < until_s:
            for cell in cells:
                totals = [0, 0, 0]
                for batch in range(batches[cell]):
                    for who in ORDERS[(lap + batch) % len(ORDERS)]:
                        with _of(self._roles[who]):
                            totals[who] += children[who].ask("call", cell=cell, batch=batch)["ns"]
                if lap >= 0:
                    laps[cell].append(totals)
            lap += 1
        self.witnesses.append(watch.end())
        return {cell: np.array(rows, np.float64) for cell, rows in laps.items()}

    def _exact(self, children: list[Child], against_base: bool) -> None:
        """Asked of the head, and of a base that is another revision."""
        from safetensors.numpy import load_file

        sides = [0, 1] if against_base else [1]
        for cell in range(len(self.names)):
            files = {who: self._scratch / f"answers-{cell}-{who}.safetensors" for who in sides}
            for who in sides:
                children[who].send("exact", cell=cell, answers_to=str(files[who]))
            facts = {}
            for who in sides:
                with _of(self._roles[who]):
                    facts[who] = children[who].receive()
            self.facts.append(facts[1])
            changes = [] if not against_base else list(exact_changes(facts[0], facts[1]))
            if against_base and (other := answers_differ(load_file(files[0]), load_file(files[1]))):
                changes.append(
                    ExactChange(what="answers", base="", head=other, regression=True, text=f"answers differ: {other}")
                )
            self.exact.append(changes)


def exact_changes(base: dict[str, Any], head: dict[str, Any]) -> Iterator[ExactChange]:
    """What is counted and differs. More work, and other decisions, are regressions unless they are accepted."""
    for what in WORK:
        one, other = base[what], head[what]
        if isinstance(one, float) and isinstance(other, float) and one != other:
            change = f" ({100 * (other / one - 1):+.1f} %)" if one else ""
            text = f"{what}: {one:,.0f} -> {other:,.0f}{change}"
            yield ExactChange(what=what, base=one, head=other, regression=other > one, text=text)
    if base["decisions"] != head["decisions"]:
        one, other = base["decisions"][:12], head["decisions"][:12]
        text = f"decisions differ: {one} -> {other}"
        yield ExactChange(what="decisions", base=one, head=other, regression=True, text=text)


def answers_differ(base: dict[str, np.ndarray], head: dict[str, np.ndarray]) -> str | None:
    """How the answers of the two sides differ, in words; None: they do not, but for rounding."""
    if {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in head.items()}:
        return "they have another shape"
    worst = 0.0
    for name, one in base.items():
        a, b = one.astype(np.float64), head[name].astype(np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return "some are not finite on one side only"
        a, b = np.nan_to_num(a), np.nan_to_num(b)
        worst = max(worst, float(np.abs(a - b).max(initial=0.0) / max(np.abs(a).max(initial=0.0), 1e-30)))
    return None if worst <= ANSWERS else f"by up to {worst:.2g} of the largest value (rounding: {ANSWERS:g})"


def _judge(
    session: _Session, stored: dict[str, Any] | None, options: Options, matters: float, accept: set[str]
) -> list[CellCheck]:
    first = {cell: _one(session, cell, stored, options, matters) for cell in range(len(session.names))}
    unsure = [cell for cell, found in first.items() if found[0].outcome != "SAME"]
    if unsure:
        session.fresh(unsure)
    return [_cell(session, cell, first[cell], stored, options, matters, accept, again=cell in unsure) for cell in first]


def _one(
    session: _Session, cell: int, stored: dict[str, Any] | None, options: Options, matters: float
) -> tuple[Judgement, Interval]:
    change, again = (nested_interval(session.series.ratios(cell, who)) for who in (1, 2))
    tells = resolution(again, options.device)
    if stored is not None:
        change, tells = _against_stored(session, cell, stored, change, tells)
    return judge(change, tells, matters=matters), again


def _cell(
    session: _Session, cell: int, first: tuple[Judgement, Interval], stored: dict[str, Any] | None, options: Options,
    matters: float, accept: set[str], *, again: bool,
) -> CellCheck:  # fmt: skip
    judged, base_again = _one(session, cell, stored, options, matters) if again else first
    confirmed = False
    if judged.outcome in ("SLOWER", "FASTER"):
        fresh = nested_interval(session.series.ratios(cell, 1, session.first_sets))
        if stored is not None:
            fresh, _ = _against_stored(session, cell, stored, fresh, judged.resolution)
        up = judged.outcome == "SLOWER"
        confirmed = fresh.value > 1 + judged.resolution if up else fresh.value < 1 / (1 + judged.resolution)
        said = f"a second series of fresh processes: {100 * (fresh.value - 1):+.1f} %"
        outcome = judged.outcome if confirmed else "AMBIGUOUS"
        judged = Judgement(outcome, judged.change, judged.resolution, f"{judged.reason}; {said}")
    totals = np.concatenate([s[cell] for s in session.series.sets if cell in s])
    exact = [
        e.model_copy(update={"regression": e.regression and (e.what if e.what not in WORK else "work") not in accept})
        for e in _exact_of(session, cell, stored)
    ]
    base_ms, head_ms = (float(np.median(totals[:, who])) / 1e6 for who in (0, 1))
    return CellCheck(
        name=session.names[cell], outcome=judged.outcome, reason=judged.reason, change=judged.change, again=base_again,
        resolution=judged.resolution, confirmed=confirmed, base_ms=base_ms, head_ms=head_ms, laps=len(totals),
        processes=sum(cell in s for s in session.series.sets), exact=exact,
    )  # fmt: skip


def _exact_of(session: _Session, cell: int, stored: dict[str, Any] | None) -> list[ExactChange]:
    if stored is None:
        return session.exact[cell]
    return list(exact_changes(stored["cells"][session.names[cell]]["facts"], session.facts[cell]))


# --- a baseline file -------------------------------------------------------------------------------------------------


def _stored(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"cannot read baseline {file}: {e.strerror}; `dynbench check --save {file}` writes one") from e
    except ValueError as e:
        raise UserError(f"baseline {file} is not JSON: {e}") from e
    if not isinstance(table, dict) or table.get("dynbench_check") != 1:
        raise UserError(f"{file} is no baseline that `dynbench check --save` wrote with this version")
    return table


def _against_stored(
    session: _Session, cell: int, stored: dict[str, Any], change: Interval, tells: float
) -> tuple[Interval, float]:
    """Now / then of the time against the static network, and what both measurements can tell."""
    then = stored["cells"].get(session.names[cell])
    if then is None:
        raise CannotTell(f"the baseline has no {session.names[cell]}; it has {', '.join(stored['cells'])}")
    unlike = {"machine": cpu_model(), "stream_hash": session.stream_hash}
    for what, now in unlike.items():
        if stored[what] != now:
            raise CannotTell(
                f"the baseline was measured with another {what.replace('_', ' ')}: {stored[what]}, not {now}"
            )
    before = Interval.model_validate(then["ratio"])
    return quotient(change, before), math.hypot(tells, then["resolution"])


def _save(file: Path, gate: Gate, session: _Session) -> None:
    cells = {
        c.name: {
            "ratio": nested_interval(session.series.ratios(i, 1)).model_dump(), "resolution": c.resolution,
            "facts": session.facts[i],
        }
        for i, c in enumerate(gate.cells)
    }  # fmt: skip
    table = {
        "dynbench_check": 1, "workload": gate.workload, "head": gate.head, "machine": gate.machine,
        "threads": gate.threads, "started": gate.started, "stream_hash": session.stream_hash, "cells": cells,
    }  # fmt: skip
    text = json.dumps(table, indent=1) + "\n"
    write_text(file, text)


# --- where it ran ----------------------------------------------------------------------------------------------------


def _root_or_folder(file: Path) -> Path:
    try:
        return top_level(file.parent)
    except UserError:
        return file.parent


def _revision(root: Path) -> str:
    """'4f2a91c0' or '4f2a91c0 with changes'."""
    try:
        dirty = " with changes" if git(root, "status", "--porcelain", "--untracked-files=no") else ""
        return git(root, "rev-parse", "HEAD")[:8] + dirty
    except UserError:
        return f"the files in {root.name}"


def _seen(found: list[Seen]) -> Witnesses:
    """What the witnesses of all sets saw together, of the shares of time; what the sides' clocks did nobody asked."""
    window_s = sum(s.window_s for s in found)

    def share(name: str) -> float | Unavailable:
        told = [(getattr(s, name), s.window_s) for s in found]
        if not told or any(isinstance(value, str) for value, _ in told):
            return Unavailable(unavailable="the system does not tell")
        return float(sum(value * s for value, s in told) / window_s)

    rest = Unavailable(unavailable="not asked of the sides' processes")
    return Witnesses(
        window_s=window_s, waited=share("waited"), stolen=share("stolen"), switched_per_s=rest, control_us=rest,
        control_drift=rest, clock_mhz=rest, clock_drift=rest, temperature_c=rest, governor=governor(),
    )  # fmt: skip
