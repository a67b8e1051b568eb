"""Workloads whose result is known beforehand, and whether a run found it: they check the instrument, not a network.

A *positive control* removes work in a way that plain hardware turns into time: tokens are gone, shapes are static. If a
run does not find it faster, it would not find others either. A *null control* decides for each input and saves nothing.
If a run finds it faster, it finds savings where there are none. Where its baseline is fastest in another engine, it is
set against the baseline in its own engine, measured in the same rounds: engines are no decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynbench.analysis.formatting import digits_of, interval, percent, times
from dynbench.analysis.headline import Timed
from dynbench.analysis.overview import Standing, Summary
from dynbench.analysis.resolution import direction
from dynbench.store.schema import Role, Speedup
from dynbench.unavailable import Unavailable

LEAST_SAVED = 0.05  # share of the dense FLOPs that a positive control leaves out when it is executed
NOTHING_SAVED = 0.005  # share that is called nothing
TELLS = 0.10  # an interval or a resolution that is wider says nothing about 'no difference'

Verdict = Literal["as expected", "not as expected", "not judged"]


@dataclass(frozen=True)
class Judgement:
    """Whether a workload with a role came out as its role says.

    Attributes:
        verdict: 'not judged': a figure is missing, or too imprecise.
        why: the figures, or what is missing; a part of a sentence.
    """

    role: Role
    verdict: Verdict
    why: str


def judged_role(summary: Summary) -> Judgement | None:
    """The judgement of a workload that has a role, at the largest batch size that was timed; None: it has none."""
    role, last = summary.info.role, summary.judged
    if role is None:
        return None
    if last is None or last.best is None:
        return Judgement(role, "not judged", "no dynamic network was timed")
    if role == "positive control":
        return _positive(role, last, last.best)
    return _null(role, summary, last, last.best)


def _positive(role: Role, last: Standing, best: Timed) -> Judgement:
    left_out = _left_out(best)
    if isinstance(left_out, str):
        return Judgement(role, "not judged", left_out)
    said = f"at batch {last.batch_size} {percent(left_out)} of the FLOPs are not executed, and it is {_speed(best)}"
    if left_out < LEAST_SAVED:
        return Judgement(role, "not as expected", f"{said}; a saving of {percent(LEAST_SAVED)} or more is expected")
    found = direction(best.speedup)
    if found == "faster":
        return Judgement(role, "as expected", said)
    more = "slower" if found == "slower" else "not told apart from the static network"
    return Judgement(role, "not as expected", f"{said}: {more}")


def _null(role: Role, summary: Summary, last: Standing, best: Timed) -> Judgement:
    for at in summary.at.values():
        if at.best is not None and direction(_in_its_engine(at.best)) == "faster":
            why = f"at batch {at.batch_size} it is {_speed(at.best, alike=True)}: faster, though nothing can be saved"
            return Judgement(role, "not as expected", why)
    if last.ideal is None:
        return Judgement(role, "not judged", "the FLOPs that its decisions ask for are unknown")
    saved = 1 - 1 / last.ideal
    if saved > NOTHING_SAVED:
        why = f"its decisions are said to save {percent(saved)} of the FLOPs, though they change no work"
        return Judgement(role, "not as expected", why)
    found, said = _in_its_engine(best), f"at batch {last.batch_size} it is {_speed(best, alike=True)}"
    if direction(found) == "slower":
        return Judgement(role, "not as expected", f"{said}: slower, and nothing but deciding was added")
    tells = found.resolution
    if tells is None:
        return Judgement(role, "not judged", f"{said}, and the resolution of the run is unknown")
    if tells > TELLS or found.low < 1 / (1 + TELLS) or found.high > 1 + TELLS:
        return Judgement(role, "not judged", f"{said}, which is too imprecise to be called no difference")
    return Judgement(role, "as expected", f"{said}: no difference, and no FLOPs are said to be saved")


def _left_out(best: Timed) -> float | str:
    """Share of the dense FLOPs that was not executed, or why it is unknown."""
    flops = best.cell.flops
    if flops is None:
        return "its FLOPs were not counted"
    for what, found in (("dense", flops.dense), ("executed", flops.executed)):
        if isinstance(found, Unavailable):
            return f"its {what} FLOPs are unknown: {found.unavailable}"
    assert isinstance(flops.dense, float) and isinstance(flops.executed, float)
    return 1 - flops.executed / flops.dense if flops.dense > 0 else "its baseline executes nothing"


def _in_its_engine(best: Timed) -> Speedup:
    """The speed-up against the baseline in the engine of the arm, of which a control tells how much slower it is there.

    Its interval holds all products of the two.
    """
    waterfall = best.cell.deployed_waterfall if best.cell.deployed else None
    engine = next((f for f in waterfall.factors if f.name == "engine"), None) if waterfall is not None else None
    if engine is None:
        return best.speedup
    ends = {end: getattr(best.speedup, end) * getattr(engine, end) for end in ("value", "low", "high")}
    return best.speedup.model_copy(update=ends)


def _speed(best: Timed, *, alike: bool = False) -> str:
    """alike: against the baseline in the same engine."""
    found = _in_its_engine(best) if alike else best.speedup
    against = f"as fast as {found.baseline}" + (" in the same engine" if found is not best.speedup else "")
    return f"{times(found.value, digits_of(found))} ({percent(found.confidence)} CI {interval(found)}) {against}"
