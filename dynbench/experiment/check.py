"""The CI gate: base and head measured interleaved in the same job, each in its own processes from its own tree.

The base takes part twice: its two sides tell how small a difference can be seen. Laps come in sets, each with fresh
processes, and a difference has to show in a second series of sets before it is said.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from dynbench.analysis.judge import Judgement, judge
from dynbench.analysis.resolution import doubts, resolution
from dynbench.analysis.statistics import process_interval
from dynbench.devices.cpu import cpu_model, governor
from dynbench.devices.witnesses import Witnesses as Seen
from dynbench.errors import UserError
from dynbench.experiment import baseline_file
from dynbench.experiment.laps import Laps
from dynbench.experiment.sides import Nursery, Role, blame
from dynbench.experiment.spec import Options, Workload, load_spec
from dynbench.experiment.trees import (
    LOCKS,
    CannotTell,
    commit_of,
    dependencies_differ,
    environment_of,
    first_party,
    git,
    top_level,
    worktree,
)
from dynbench.store.gate import CellCheck, ExactChange, Gate
from dynbench.store.schema import Interval, Unavailable, Warning_, Witnesses

ANSWERS = 1e-4  # share of the largest value up to which an answer counts as the same
ACCEPTED = ("answers", "decisions", "work")
WORK = ("executed FLOPs", "required FLOPs", "operator calls", "host waits")
Say = Callable[[str], None]


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
    stored = None if baseline is None else baseline_file.read(baseline)
    with contextlib.ExitStack() as stack:
        if base is None:
            sides = _head_and_static(stack, spec, options, "its static baseline" if baseline is None else str(baseline))
        else:
            sides = _head_and_base(stack, spec, options, base, same_environment, say)
        for role in sides.roles:
            with blame(role):
                role.nursery.ready()
        laps = Laps(sides.roles, sides.scratch, begin, seconds, options.threads, options.device, say)
        laps.first(exact_of=[0, 1] if base is not None else [1])
        cells = _judged(laps, stored, options, matters, set(accept))
    commit, dirty = _revision(sides.root)
    gate = Gate(
        workload=spec.name, title=spec.title, base=sides.base, head=_in_words(sides.root, commit, dirty),
        commit=commit, dirty=dirty, machine=cpu_model(), device=options.device, threads=options.threads,
        started=started.isoformat(timespec="seconds"), seconds=time.monotonic() - begin, matters=matters, cells=cells,
        warnings=[*sides.doubts, *doubts(_seen(laps.witnesses), None)],
    )  # fmt: skip
    if save is not None:
        of_cells = {
            c.name: {
                "ratio": process_interval(laps.series.ratios(i, 1)).model_dump(), "resolution": c.resolution,
                "facts": laps.exact[i][1][0],
            }
            for i, c in enumerate(cells)
        }  # fmt: skip
        baseline_file.save(save, gate, laps.stream_hash, of_cells)
    return gate


# --- who is compared with whom ---------------------------------------------------------------------------------------


class Sides(NamedTuple):
    """Who takes part.

    Attributes:
        roles: what the head is compared with, the head, and the former again.
        root: of the head's source.
        scratch: folder for files that the sides write.
        base: what the head is compared with, in words.
        doubts: what speaks against the comparison.
    """

    roles: list[Role]
    root: Path
    scratch: Path
    base: str
    doubts: list[Warning_]


def _head_and_base(
    stack: contextlib.ExitStack, spec: Workload, options: Options, revision: str, same_environment: bool, say: Say
) -> Sides:  # fmt: skip
    """The dynamic network in the working tree and in a revision."""
    root = top_level(spec.file.parent)
    if not spec.file.is_relative_to(root):
        raise UserError(f"{spec.file} does not lie in the repository {root}")
    commit = commit_of(root, revision)
    tree = stack.enter_context(worktree(root, commit))
    scratch = tree.parent  # goes with the worktree, also where this process is killed
    file = tree / spec.file.relative_to(root)
    if not file.is_file():
        raise CannotTell(f"{revision} has no {spec.file.relative_to(root)}: there is nothing to compare with")
    python, other = sys.executable, []
    if not same_environment and (differ := dependencies_differ(tree, root)):
        say(f"{', '.join(differ)} differ: an environment for the base (cached)")
        python = str(environment_of(tree))
        other = [
            Warning_(
                id="DB-LOCK-01", text=f"{name} differs, and is not followed: what only it pins is as on the head",
                remedy="pin in requirements.txt or constraints.txt what matters for time",
            )
            for name in differ
            if name in LOCKS
        ]  # fmt: skip
    common = {"options": options.model_dump(mode="json"), "names": first_party(tree, root), "static": False}
    before = {**common, "file": str(file), "tree": str(tree), "stream_file": str(scratch / "base.npz")}
    after = {**common, "file": str(spec.file), "tree": str(root), "stream_file": str(scratch / "head.npz")}
    where = [(python, tree), (sys.executable, root), (python, tree)]
    base, head, again = (_nursery(stack, *place, options.threads, scratch) for place in where)
    roles = [Role("base", base, before), Role("head", head, after), Role("base", again, before)]
    return Sides(roles, root, scratch, f"{revision} ({commit[:8]})", other)


def _head_and_static(stack: contextlib.ExitStack, spec: Workload, options: Options, against: str) -> Sides:
    """The dynamic network and its primary baseline, both of the working tree."""
    root = _root_or_folder(spec.file)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dynbench-check-")))
    common = {
        "options": options.model_dump(mode="json"), "names": first_party(root), "file": str(spec.file),
        "tree": str(root), "stream_file": str(scratch / "head.npz"),
    }  # fmt: skip
    one, mine, two = (_nursery(stack, sys.executable, root, options.threads, scratch) for _ in range(3))
    static, dynamic = ({**common, "static": flag} for flag in (True, False))
    name = "its static baseline"
    roles = [Role(name, one, static), Role("head", mine, dynamic), Role(name, two, static)]
    return Sides(roles, root, scratch, against, [])


def _nursery(stack: contextlib.ExitStack, python: str, tree: Path, threads: int, scratch: Path) -> Nursery:
    made = Nursery(python, tree, threads, Path(tempfile.mkdtemp(dir=scratch)))
    stack.callback(made.close)
    return made


def _root_or_folder(file: Path) -> Path:
    try:
        return top_level(file.parent)
    except UserError:
        return file.parent


def _revision(root: Path) -> tuple[str | None, bool]:
    """The commit of a tree, None if it is in no repository, and whether there are changes to it."""
    try:
        return git(root, "rev-parse", "HEAD"), bool(git(root, "status", "--porcelain", "--untracked-files=no"))
    except UserError:
        return None, False


def _in_words(root: Path, commit: str | None, dirty: bool) -> str:
    """'4f2a91c0' or '4f2a91c0 with changes'."""
    if commit is None:
        return f"the files in {root.name}"
    return commit[:8] + " with changes" * dirty


# --- the verdicts ----------------------------------------------------------------------------------------------------


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


def _judged(
    laps: Laps, stored: dict[str, Any] | None, options: Options, matters: float, accept: set[str]
) -> list[CellCheck]:
    def now(cell: int) -> tuple[Judgement, Interval]:
        change, again = (process_interval(laps.series.ratios(cell, who)) for who in (1, 2))
        tells = resolution(again, options.device)
        if stored is not None:
            change, tells = baseline_file.against(stored, laps.names[cell], options, laps.stream_hash, change, tells)
        return judge(change, tells, matters=matters), again

    cells = range(len(laps.names))
    first = {cell: now(cell) for cell in cells}
    unsure = [cell for cell, (judged, _) in first.items() if judged.outcome != "SAME"]
    if unsure:
        laps.fresh(unsure)
    found = []
    for cell in cells:
        judged, again = now(cell) if cell in unsure else first[cell]
        if judged.outcome in ("SLOWER", "FASTER"):
            judged = _confirmed(laps, cell, judged, stored, options)
        found.append(_cell(laps, cell, judged, again, _exact(laps, cell, stored, accept)))
    return found


def _confirmed(laps: Laps, cell: int, judged: Judgement, stored: dict[str, Any] | None, options: Options) -> Judgement:
    """What is left of a difference when only the second series is asked: the same, or AMBIGUOUS."""
    fresh = process_interval(laps.series.ratios(cell, 1, laps.first_sets))
    if stored is not None:
        name = laps.names[cell]
        fresh, _ = baseline_file.against(stored, name, options, laps.stream_hash, fresh, judged.resolution)
    bound = 1 + judged.resolution
    confirmed = fresh.value > bound if judged.outcome == "SLOWER" else fresh.value < 1 / bound
    reason = f"{judged.reason}; a second series of fresh processes: {100 * (fresh.value - 1):+.1f} %"
    return Judgement(judged.outcome if confirmed else "AMBIGUOUS", judged.change, judged.resolution, reason)


def _cell(laps: Laps, cell: int, judged: Judgement, again: Interval, exact: list[ExactChange]) -> CellCheck:
    sets = [s[cell] for s in laps.series.sets if cell in s]
    base_ms, head_ms = (float(np.median(np.concatenate(sets)[:, who])) / 1e6 for who in (0, 1))
    return CellCheck(
        name=laps.names[cell], outcome=judged.outcome, reason=judged.reason, change=judged.change, again=again,
        resolution=judged.resolution, confirmed=judged.outcome in ("SLOWER", "FASTER"), base_ms=base_ms,
        head_ms=head_ms, laps=sum(map(len, sets)), processes=len(sets), exact=exact,
    )  # fmt: skip


def _exact(laps: Laps, cell: int, stored: dict[str, Any] | None, accept: set[str]) -> list[ExactChange]:
    asked = laps.exact[cell]
    facts, answers = asked[1]
    changes: list[ExactChange] = []
    if 0 in asked:
        base_facts, base_answers = asked[0]
        changes += exact_changes(base_facts, facts)
        if other := answers_differ(load_file(base_answers), load_file(answers)):
            text = f"answers differ: {other}"
            changes.append(ExactChange(what="answers", base="", head=other, regression=True, text=text))
    elif stored is not None:
        changes += exact_changes(stored["cells"][laps.names[cell]]["facts"], facts)

    def matters(change: ExactChange) -> bool:
        return change.regression and ("work" if change.what in WORK else change.what) not in accept

    return [change.model_copy(update={"regression": matters(change)}) for change in changes]


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
        control_drift=rest, clock_mhz=rest, clock_low_mhz=rest, clock_drift=rest, temperature_c=rest,
        governor=governor(),
    )  # fmt: skip
