"""The CI gate: base and head measured interleaved in the same job, each in its own processes from its own tree.

The base takes part twice: what its two parts differ by is the resolution, and no smaller difference is reported. Laps
come in sets with fresh processes, and a difference must show again in a second series of sets before it is reported.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import load_file

from dynbench.analysis.judge import Judgement, judge
from dynbench.analysis.resolution import doubts, resolution
from dynbench.analysis.statistics import process_interval
from dynbench.devices.cpu import cpu_model, governor
from dynbench.devices.witnesses import Witnesses as SetWitnesses
from dynbench.experiment.spec import Options, Workload, load_spec
from dynbench.gate import baseline_file
from dynbench.gate.baseline_file import Baseline, BaselineCell, StoredRatio
from dynbench.gate.comparison import Comparison, Say, in_words, with_base, with_static
from dynbench.gate.exact import answers_change, exact_changes, is_accepted, not_repeated
from dynbench.gate.git import head_of
from dynbench.gate.laps import AGAIN, BASE, HEAD, Laps
from dynbench.gate.revisions import blame
from dynbench.gate.trees import CannotTell
from dynbench.store.gate import CellCheck, ExactChange, Gate
from dynbench.store.schema import Interval, Witnesses
from dynbench.unavailable import Measured, Unavailable


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
        accept: of `exact.ACCEPTED`: what may change without being a regression.
        same_environment: do not install other dependencies for the base.
        say: called with sentences about the progress.

    Raises:
        UserError: bad use.
        CannotTell: there is no outcome, for a reason that lies in the base or the machine.
    """
    started, begin = datetime.datetime.now(datetime.UTC), time.monotonic()
    spec = load_spec(workload)
    stored = None if baseline is None else baseline_file.read(baseline)
    if stored is not None:
        stored.check_comparable(spec.name, options)
    with _compared(spec, options, base, baseline, same_environment, say) as comparison:
        for revision in comparison.revisions:
            with blame(revision.name):
                revision.ready()
        laps = Laps(comparison.revisions, comparison.scratch, begin, seconds, options.threads, options.device, say)
        counted = [HEAD] if base is None else [BASE, HEAD]
        laps.first(*counted, check=None if stored is None else stored.check_prepared)
        cells = Verdicts(laps, stored, options.device, matters, set(accept)).cells()
    commit, dirty = head_of(comparison.root)
    gate = Gate(
        workload=spec.name,
        title=spec.title,
        base=comparison.base,
        head=in_words(comparison.root, commit, dirty),
        commit=commit,
        dirty=dirty,
        machine=cpu_model(),
        device=options.device,
        threads=options.threads,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - begin,
        matters=matters,
        cells=cells,
        warnings=[*comparison.doubts, *doubts(_seen(laps.witnesses), None)],
        notes=[comparison.note] if comparison.note else [],
    )
    if save is not None:
        baseline_file.save(save, Baseline.of(gate, laps.stream_hash, _to_keep(laps, cells)))
    return gate


def _compared(
    spec: Workload, options: Options, base: str | None, baseline: Path | None, same_environment: bool, say: Say
) -> contextlib.AbstractContextManager[Comparison]:
    if base is not None:
        return with_base(spec, options, base, same_environment, say)
    return with_static(spec, options, "its static baseline" if baseline is None else str(baseline))


def _to_keep(laps: Laps, cells: list[CellCheck]) -> list[BaselineCell]:
    """What a baseline file keeps of the cells.

    Raises:
        CannotTell: a ratio was found so inaccurately that `baseline_file.read` would refuse it.
    """
    try:
        return [
            BaselineCell(
                arm=cell.arm,
                batch_size=cell.batch_size,
                ratio=StoredRatio(**process_interval(laps.series.ratios(i, HEAD)).model_dump()),
                resolution=cells[i].resolution,
                facts=laps.exact[i][HEAD].facts,
            )
            for i, cell in enumerate(laps.cells)
        ]
    except ValidationError as e:
        raise CannotTell("this machine is too noisy now: a ratio to the static network cannot be kept") from e


@dataclass(frozen=True)
class Verdicts:
    """Judges the cells of a check; measures more where it has to.

    Attributes:
        laps: after the first series.
        stored: a baseline that the head is compared with; None: the base takes part.
        device: of the run.
        matters: smallest change of time that matters, as a share.
        accepted: what may change without being a regression.
    """

    laps: Laps
    stored: Baseline | None
    device: str
    matters: float
    accepted: set[str]

    def cells(self) -> list[CellCheck]:
        """All cells; those that may have changed are measured in a second series first.

        Raises:
            CannotTell: a participant failed, or the baseline lacks a cell.
        """
        first = [self._judged(cell) for cell in range(len(self.laps.cells))]
        unsure = [cell for cell, judged in enumerate(first) if judged.outcome != "SAME"]
        if unsure:
            self.laps.fresh(unsure)
        judgements = [self._confirmed(cell) if cell in unsure else judged for cell, judged in enumerate(first)]
        return [self._cell(cell, judged) for cell, judged in enumerate(judgements)]

    def _again(self, cell: int) -> Interval:
        """The base against itself."""
        return process_interval(self.laps.series.ratios(cell, AGAIN))

    def _judged(self, cell: int) -> Judgement:
        """By all that was measured so far."""
        change = process_interval(self.laps.series.ratios(cell, HEAD))
        resolvable = resolution(self._again(cell), self.device)
        return judge(*self._since_then(cell, change, resolvable), matters=self.matters)

    def _since_then(self, cell: int, change: Interval, resolvable: float) -> tuple[Interval, float]:
        if self.stored is None:
            return change, resolvable
        return self.stored.since_then(self.laps.cells[cell], change, resolvable)

    def _confirmed(self, cell: int) -> Judgement:
        """By both series; a difference that the second one alone does not show is AMBIGUOUS."""
        judged = self._judged(cell)
        if judged.outcome not in ("SLOWER", "FASTER"):
            return judged
        fresh = process_interval(self.laps.series.ratios(cell, HEAD, self.laps.first_sets))
        fresh, _ = self._since_then(cell, fresh, judged.resolution)
        bound = 1 + judged.resolution
        confirmed = fresh.value > bound if judged.outcome == "SLOWER" else fresh.value < 1 / bound
        reason = f"{judged.reason}; a second series of fresh processes: {100 * (fresh.value - 1):+.1f} %"
        return replace(judged, outcome=judged.outcome if confirmed else "AMBIGUOUS", reason=reason)

    def _cell(self, cell: int, judged: Judgement) -> CellCheck:
        sets = [s[cell] for s in self.laps.series.sets if cell in s]
        totals_ms = np.concatenate(sets) / 1e6
        identity = self.laps.cells[cell]
        return CellCheck(
            name=identity.name,
            arm=identity.arm,
            batch_size=identity.batch_size,
            outcome=judged.outcome,
            reason=judged.reason,
            change=judged.change,
            again=self._again(cell),
            resolution=judged.resolution,
            confirmed=judged.outcome in ("SLOWER", "FASTER"),
            base_ms=float(np.median(totals_ms[:, BASE])),
            head_ms=float(np.median(totals_ms[:, HEAD])),
            laps=len(totals_ms),
            processes=len(sets),
            exact=[self._weighed(change) for change in self._exact(cell)],
        )

    def _exact(self, cell: int) -> Iterator[ExactChange]:
        counted = self.laps.exact[cell]
        head = counted[HEAD]
        if head.random:  # and the base is not: that it answers something else, then, says nothing more
            yield from not_repeated(head.random)
        elif BASE in counted:
            yield from exact_changes(counted[BASE].facts, head.facts)
            yield from answers_change(load_file(counted[BASE].answers), load_file(head.answers))
        elif self.stored is not None:
            yield from exact_changes(self.stored.cell(self.laps.cells[cell]).facts, head.facts)

    def _weighed(self, change: ExactChange) -> ExactChange:
        """What the user accepts is no regression."""
        return change.model_copy(update={"regression": change.regression and not is_accepted(change, self.accepted)})


def _seen(sets: list[SetWitnesses]) -> Witnesses:
    """What the witnesses of all sets saw together, as far as it is about the machine and not about one process."""
    window_s = sum(s.window_s for s in sets)

    def share(name: str) -> Measured:
        total_s = 0.0
        for seen in sets:
            value = getattr(seen, name)
            if isinstance(value, Unavailable):
                return value
            total_s += value * seen.window_s
        return total_s / window_s if window_s else Unavailable(unavailable="nothing was measured")

    rest = Unavailable(unavailable="not asked of the processes that were measured")
    return Witnesses(
        window_s=window_s,
        waited=share("waited"),
        stolen=share("stolen"),
        switched_per_s=rest,
        control_us=rest,
        control_drift=rest,
        clock_mhz=rest,
        clock_low_mhz=rest,
        clock_drift=rest,
        temperature_c=rest,
        governor=governor(),
    )
