"""The timed part of a group: its arms in rounds of random order, until their ratios are precise enough."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from dynbench.analysis.statistics import ratio_of_totals
from dynbench.analysis.stopping import Stopping
from dynbench.devices.witnesses import Watch
from dynbench.errors import DynbenchError
from dynbench.experiment.arms import RunningArm
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.explain import is_control
from dynbench.experiment.plan import SWEEP_TIME_SHARE
from dynbench.experiment.walks import Walks
from dynbench.experiment.ways import SHORT_PASS_S
from dynbench.meters.latency import Timing, time_batches
from dynbench.store.schema import RoundSample

WARM_UP_MIN, WARM_UP_MAX = 2, 6  # passes
WARM_UP_STEADY = 0.1  # until two passes differ by less than this share
WARM_UP_ITEMS = 32  # of the stream
WARM_UP_BATCHES = 8  # at most
WARM_UP_S = 0.5  # or so many seconds
MIN_ROUNDS = 3  # a result needs at least so many
ALONE_SHARE = 0.3  # of a group's time: rounds of deployed networks alone, which strategies as written slow down


class Samples:
    """The columns of a group's sample file, in memory."""

    def __init__(self, process: int) -> None:
        self._process = process
        self.columns: dict[str, list[Any]] = {name: [] for name in RoundSample.model_fields}

    def add(self, arm: RunningArm, position: int, timings: list[Timing]) -> None:
        """Keeps the timings of the arm's last round, in which it had this position."""
        for batch_id, timing in enumerate(timings):
            row = RoundSample(
                process=self._process,
                round=len(arm.rounds) - 1,
                position=position,
                arm=arm.arm.key,
                batch_id=batch_id,
                start_ns=timing.start_ns,
                duration_ns=timing.duration_ns,
                device_ns=timing.device_ns,
            )
            for name, values in self.columns.items():
                values.append(getattr(row, name))


def guarded(arm: RunningArm, work: Callable[[], Any]) -> Any:
    """Runs a part of an arm's work; what goes wrong costs the arm, not the group."""
    try:
        return work()
    except (MemoryError, torch.OutOfMemoryError) as e:
        arm.failed = f"out of memory: {e}".splitlines()[0]
    except RuntimeError as e:
        arm.failed = ("out of memory: " if "can't allocate memory" in str(e) else "") + f"{e}".splitlines()[0]
    except DynbenchError as e:
        arm.failed = str(e)
    except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
        arm.failed = f"{type(e).__name__}: {e}"
    return None


def warm_up(arm: RunningArm, warm: bool) -> None:
    """Until steady; one pass where another group, arm or the tournament has done so with the same shapes (`warm`)."""
    before, begin = 0, time.monotonic()
    few = arm.batches[: min(WARM_UP_BATCHES, max(WARM_UP_ITEMS // len(arm.batches[0][1]), 1))]
    for n in range(WARM_UP_MAX):
        now = sum(t.duration_ns for t in time_batches(arm.call, few, arm.device))
        arm.pass_s = now / 1e9 * len(arm.batches) / len(few)
        steady = n + 1 >= WARM_UP_MIN and abs(now - before) < WARM_UP_STEADY * before
        if steady or warm or time.monotonic() - begin > WARM_UP_S:
            return
        before = now


class Rounds:
    """Times the arms of a group in rounds: first all, then those that are deployed alone.

    A strategy that calls a network item by item may take as long as ten deployed networks; these are what a verdict is
    about, and get rounds of their own where the time did not suffice. Where networks are walked, this is done between
    the arms of each round, and does not count as a sample.
    """

    def __init__(
        self,
        p: Prepared,
        source: Source,
        samples: Samples,
        tell: Callable[..., None],
        stop: Callable[[], bool],
        watch: Watch,
        walks: Walks | None,
    ) -> None:
        self._p, self._samples, self._tell, self._stop, self._watch, self._walks = p, samples, tell, stop, watch, walks
        self._limit_s = p.options.time_limit_s * (SWEEP_TIME_SHARE if source.sweep else 1.0)
        self._order = random.Random(p.options.seed)

    def measure(self, arms: list[RunningArm]) -> float:
        """Measures until precise enough, or the time is over; returns the seconds inside timed samples."""
        deployed = [a for a in arms if _of_deployed(a, arms)]
        share = ALONE_SHARE if 0 < len(deployed) < len(arms) else 0.0
        begin = time.monotonic()
        spent_s = self._until(arms, begin, (1 - share) * self._limit_s)
        if share and any(a.stopped_by == "time limit" for a in deployed):
            limit_s = max(self._limit_s, time.monotonic() - begin + share * self._limit_s)
            spent_s += self._until(deployed, begin, limit_s)
        return spent_s

    def _until(self, arms: list[RunningArm], begin: float, limit_s: float) -> float:
        """Rounds of these arms until their ratios are precise, or so many seconds have passed since the first."""
        rule = Stopping(precision=self._p.options.precision, time_limit_s=limit_s)
        spent_ns = 0
        while True:
            spent_ns += self._round([a for a in arms if a.failed is None])
            rounds = max((len(a.rounds) for a in arms if a.failed is None), default=0)
            elapsed = time.monotonic() - begin
            self._tell("round", n=rounds, elapsed_s=elapsed, limit_s=limit_s)
            why = "interrupt" if self._stop() else rule.finished(rounds, elapsed, ratios(arms))
            all_failed = all(a.failed is not None for a in arms)
            if all_failed or why == "interrupt" or (why is not None and rounds >= MIN_ROUNDS):
                for arm in arms:
                    arm.stopped_by = why or "time limit"
                return spent_ns / 1e9

    def _round(self, arms: list[RunningArm]) -> int:
        """Each of the arms once, in random order; returns the nanoseconds inside timed samples.

        Where passes are short, each begins with a batch that is not timed: another network ran just before, and where
        it is used, a network follows itself.
        """
        spent_ns, short = 0, any(arm.pass_s < SHORT_PASS_S for arm in arms)
        self._order.shuffle(arms)
        self._watch.tick()
        for position, arm in enumerate(arms):
            if self._walks is not None:
                self._walks.before(arm.arm.key, position, len(arms))
            self._tell("arm", name=arm.arm.key)
            if short and guarded(arm, partial(time_batches, arm.call, arm.batches[:1], arm.device)) is None:
                continue
            timings = guarded(arm, partial(self._p.parts.load.issue, arm.call, arm.batches, arm.device))
            if timings is None:
                continue
            arm.rounds.append(timings)
            spent_ns += sum(t.duration_ns for t in timings)
            self._samples.add(arm, position, timings)
        return spent_ns


def _of_deployed(arm: RunningArm, arms: list[RunningArm]) -> bool:
    """Whether it is a deployed network, or a control of one."""
    return arm.cell.deployed or not arm.written or any(is_control(arm.arm, a.arm) for a in arms if a.cell.deployed)


def bases_of(arm: RunningArm, arms: list[RunningArm], *, deployed: bool) -> list[RunningArm]:
    """What an arm is compared with: the other networks of its own engine as written, or all deployed baselines."""
    compared = ("baseline",) if deployed else ("baseline", "opaque")
    found = [a for a in arms if a.arm.kind in compared and not a.arm.again]
    if deployed:
        return [a for a in found if a.cell.deployed] if arm.cell.deployed else []
    return [a for a in found if a.written and a.arm.engine == arm.arm.engine] if arm.written else []


def primary_of(arm: RunningArm, arms: list[RunningArm], *, deployed: bool) -> RunningArm | None:
    """The one among these that the verdict is about; None: there is none."""
    return next((a for a in bases_of(arm, arms, deployed=deployed) if a.cell.primary), None)


def paired(base: RunningArm, arm: RunningArm) -> np.ndarray:
    """[rounds] of the baseline over the arm, in those that both have: the first ones."""
    shared = min(len(base.rounds), len(arm.rounds))
    return ratio_of_totals(base.totals_ns()[:shared], arm.totals_ns()[:shared])


def ratios(arms: list[RunningArm]) -> list[np.ndarray]:
    """[rounds] primary baseline over arm, for every arm but controls of which a part is left out; both ways of it."""
    found = []
    for arm in (a for a in arms if not a.arm.only_explains):
        for deployed in (False, True):
            primary = primary_of(arm, arms, deployed=deployed)
            if primary is not None and primary is not arm and primary.failed is None and arm.failed is None:
                found.append(paired(primary, arm))
    return found
