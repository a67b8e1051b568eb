"""What was found for one workload, in a sentence or two that the numbers bear out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dynbench.analysis.formatting import digits_of, interval, percent, times
from dynbench.analysis.gap import gap, primary_speedup
from dynbench.analysis.headline import Timed, contest, timed
from dynbench.analysis.resolution import direction
from dynbench.store.schema import Accuracy, Cell, Decisions, Speedup, WorkloadInfo
from dynbench.unavailable import Unavailable


def verdict(info: WorkloadInfo, cells: list[Cell], device_phrase: str) -> str:
    """Says what is saved, what it costs in accuracy, and what it becomes in time.

    It is about the largest batch size that was measured, and adds a smaller one where that ends otherwise. A
    difference whose interval contains 1 is called neither faster nor slower. What was not measured is said with its
    reason.

    Args:
        info: the workload.
        cells: of the run; those of other workloads are left out.
        device_phrase: where it ran, as a noun phrase: 'this CPU', 'one thread of this CPU'.
    """
    mine = [c for c in cells if c.workload == info.name]
    found = contest(info.name, mine)
    if found is None and not info.points:
        return _static(info, mine, device_phrase)
    if found is None:
        return f"{info.title}: no dynamic strategy was measured."
    sentences = [_saved(info, found.source, found.entrants, _baseline(mine)), *_declared(info, found.source)]
    if found.ranked:
        largest = max(found.ranked)
        sentences.append(f"On {device_phrase} {_measured(found.ranked[largest])}.")
        sentences += _otherwise(found.ranked)
        sentences += _failures([c for c in found.entrants if c.status == "failed" and c.batch_size == largest])
    elif any(c.status == "ok" for c in found.entrants):
        sentences.append(_no_baseline(mine))
    else:
        sentences.append(f"Nothing was timed: {_reasons(found.entrants)}.")
    return " ".join(sentences)


def _static(info: WorkloadInfo, cells: list[Cell], device_phrase: str) -> str:
    """Of networks without decisions: what each gave against the primary one."""
    head = f"{info.title}: nothing depends on the input"
    measured = timed(cells)
    if not measured:
        return f"{head}."
    largest = max(t.cell.batch_size for t in measured)
    each = [
        f"{_static_name(info, t.cell)} {times(t.speedup.value, digits_of(t.speedup))}{_doubt(t.speedup)}"
        for t in measured
        if t.cell.batch_size == largest
    ]
    against = measured[0].speedup.baseline
    return f"{head}. On {device_phrase} at batch {largest}, against {against}: {', '.join(each)}."


def _static_name(info: WorkloadInfo, cell: Cell) -> str:
    """A baseline's own name; of the workload's own network the name of its function."""
    return cell.arm.title if cell.arm.kind == "baseline" else _in_its_way(info.model.rpartition(":")[2], cell)


@dataclass(frozen=True)
class _Baseline:
    """The primary baseline: its name, and what it is called in a sentence."""

    name: str | None
    phrase: str


def _baseline(cells: list[Cell]) -> _Baseline:
    for cell in cells:
        if cell.arm.kind == "baseline" and cell.primary:
            return _Baseline(cell.arm.name, "the dense network" if cell.static_twin else cell.arm.name)
    name = next((s.baseline for c in cells if (s := primary_speedup(c)) is not None), None)
    return _Baseline(name, name or "the dense network")


# --- what is saved ---------------------------------------------------------------------------------------------------


def _saved(info: WorkloadInfo, source: Decisions, strategies: list[Cell], baseline: _Baseline) -> str:
    ideal = next((g.ideal for c in strategies if (g := gap(c)).ideal is not None), None)
    doing = _doing(info)
    unknown = ""
    if ideal is None:
        doing = ["skips part of its computation"] if doing == ["skips"] else doing
        unknown = f"; how much computation that saves is {_why_no_ideal(strategies)}"
    else:
        saved = round(100 * (1 - 1 / ideal))
        if saved > 0 and doing == ["skips"]:
            doing = [f"skips {saved} % of the computation of {baseline.phrase}"]
        elif saved > 0:
            doing.append(f"saves {saved} % of the computation of {baseline.phrase}")
        else:
            asks = f"asks for {-saved} % more computation than" if saved else "saves nothing against"
            doing.append(f"{asks} {baseline.phrase}")
    return f"{_given(source)}{info.title} {_listed(doing)}{_accuracy(info, source, baseline.name)}{unknown}."


def _declared(info: WorkloadInfo, source: Decisions) -> list[str]:
    """Sentences on what is asked of others: their time is in no speed-up."""
    return [
        f"{100 * d.share:.0f} % of the items end at a {d.what}, whose {d.latency_s:g} s and {d.cost:g} {d.unit} per "
        "query are declared, not measured, and in no time below."
        for d in info.declared
        if d.decisions == source.label
    ]


def _doing(info: WorkloadInfo) -> list[str]:
    """What the model does, in the words of its decision points."""
    return [*info.actions] or ["decides what to compute"]


def _given(source: Decisions) -> str:
    rate = "" if source.keep_rate is None else f" (keep-rate {source.keep_rate:.2f})"
    return {
        "learned": "",
        "replay": f"With decisions replayed from a trace{rate} ",
        "published": f"With decisions made up at the published rate{rate} ",
        "synthetic": f"With made-up decisions{rate} ",
    }[source.source]


def _why_no_ideal(cells: list[Cell]) -> str:
    for flops in (c.flops for c in cells if c.flops is not None):
        for found in (flops.dense, flops.required_region):
            if isinstance(found, Unavailable):
                return f"unavailable ({_short(found.unavailable)})"
    return "unknown"


def _accuracy(info: WorkloadInfo, source: Decisions, baseline: str | None) -> str:
    if source.source != "learned":
        return ""  # accuracy belongs to decisions that were learned
    ours, theirs = info.accuracies.get("dynamic"), info.accuracies.get(baseline or "")
    if ours is None:
        return ", its accuracy not measured" if info.weights else ", with untrained weights"
    if isinstance(ours.value, Unavailable):
        return f", its accuracy unavailable ({_short(ours.value.unavailable)})"
    if theirs is None or isinstance(theirs.value, Unavailable):
        return f", at {_level(ours, ours.value)} ({baseline or 'primary baseline'} unknown)"
    if "accuracy" not in ours.metric:
        better = "" if ours.higher_is_better else " (lower is better)"
        return f", at {ours.value:.3f} against {theirs.value:.3f} {ours.metric}{better}"
    points = 100 * (ours.value - theirs.value)
    both = f"{100 * ours.value:.1f} against {100 * theirs.value:.1f} %"
    if abs(points) < 0.05:
        return f" at the same {ours.metric} ({both})"
    difference = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} {ours.metric}"
    n = min(ours.items, theirs.items)
    variance = sum(max(0.0, p * (1 - p)) for p in (ours.value, theirs.value))
    doubt = f", less than {n} inputs can resolve" if n and abs(points) < 196 * math.sqrt(variance / n) else ""
    return f" at {difference} ({both}{doubt})"


def _level(accuracy: Accuracy, value: float) -> str:
    number = f"{100 * value:.1f} %" if "accuracy" in accuracy.metric else f"{value:.3f}"
    return f"{number} {accuracy.metric}"


# --- what it becomes -------------------------------------------------------------------------------------------------


def _measured(ranked: list[Timed]) -> str:
    """`ranked`: the cells of one batch size, best first."""
    (best, speedup), *rest = ranked
    others = [t for t in rest if not t.cell.item_by_item]
    against = f"{speedup.baseline} at batch {best.batch_size}"
    ideal = next((g.ideal for t in ranked if (g := gap(t.cell)).ideal is not None), None)
    into = ""
    if direction(speedup) == "faster":
        gives = "gives"
        if ideal is None or ideal > 1:
            gives, into = "turns that into", "into "
        head = f"{_name(best)} {gives} {times(speedup.value, digits_of(speedup))} against {against} ({_ends(speedup)})"
    else:
        if direction(speedup) == "unclear":
            head = f"no strategy is measurably faster than {against}"
        else:
            head = f"{'every strategy measured' if len(ranked) > 1 else _name(best)} is slower than {against}"
        head += f": {_gives(ranked[0])}"
    tail = "".join(f", {_name(t.cell)} {into}{times(t.speedup.value)}{_doubt(t.speedup)}" for t in others)
    return f"{head}{tail}" + ("" if ideal is None else f"; the ideal is {times(ideal)}")


def _otherwise(ranked: dict[int, list[Timed]]) -> list[str]:
    """A sentence on the smallest batch size whose best strategy ends otherwise than at the largest."""
    at_largest = direction(ranked[max(ranked)][0].speedup)
    for size in sorted(ranked):
        best = ranked[size][0]
        found = direction(best.speedup)
        if found != at_largest:
            what = {"faster": "", "unclear": "nothing is measurably faster: ", "slower": "everything is slower: "}
            return [f"At batch {size} {what[found]}{_gives(best)}."]
    return []


def _failures(failed: list[Cell]) -> list[str]:
    return [f"At batch {failed[0].batch_size} {_reasons(failed)}."] if failed else []


def _no_baseline(cells: list[Cell]) -> str:
    bases = [c for c in cells if c.arm.kind == "baseline" and c.primary]
    why = f": {_reasons(bases)}" if bases and all(c.status != "ok" for c in bases) else ""
    return f"No speed-up can be given, as there is no measured primary baseline{why}."


def _reasons(cells: list[Cell]) -> str:
    """'masking, compaction failed (out of memory); cascading was refused (no Loop)'."""
    verbs = {"refused": "was refused", "failed": "failed", "interrupted": "was interrupted", "ok": "was measured"}
    names: dict[str, list[str]] = {}
    for c in cells:
        reason = f" ({_short(c.reason)})" if c.reason else ""
        who = names.setdefault(f"{verbs[c.status]}{reason}", [])
        if _name(c) not in who:
            who.append(_name(c))
    return "; ".join(f"{', '.join(who)} {what}" for what, who in names.items())


def _doubt(found: Speedup) -> str:
    return " (not told apart from 1x)" if direction(found) == "unclear" else ""


def _gives(best: Timed) -> str:
    """'compaction gives 1.02x (95 % CI 0.98 to 1.06)'."""
    value = times(best.speedup.value, digits_of(best.speedup))
    return f"{_name(best.cell)} gives {value} ({_ends(best.speedup)})"


def _ends(found: Speedup) -> str:
    """The interval, and why it says nothing where it seems to."""
    text = f"{percent(found.confidence)} CI {interval(found)}"
    if found.resolution is not None and direction(found) == "unclear" and (found.low > 1 or found.high < 1):
        text += f"; the baseline measured twice may differ by {percent(found.resolution, 1)}"
    return text


def _name(cell: Cell) -> str:
    return _in_its_way("per-sample execution", cell) if cell.item_by_item else cell.arm.title


def _in_its_way(name: str, cell: Cell) -> str:
    return f"{name}, {cell.arm.way}" if cell.arm.way else name


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _short(reason: str) -> str:
    return reason.strip().rstrip(".")
