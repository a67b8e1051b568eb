"""What was found for one workload, in a sentence or two that the numbers bear out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynbench.analysis.gap import gap, primary_speedup
from dynbench.analysis.resolution import call
from dynbench.store.schema import Accuracy, Cell, Decisions, Speedup, Unavailable, WorkloadInfo

SOURCES = ("learned", "replay", "published", "synthetic")  # whose decisions a verdict is about, if there are several


def verdict(info: WorkloadInfo, cells: list[Cell], device_phrase: str) -> str:
    """Says what is saved, what it costs in accuracy, and what it becomes in time.

    It is about the largest batch size that was measured, and adds a smaller one where that ends otherwise. A
    difference whose interval contains 1 is called neither faster nor slower. What was not measured is said with its
    reason.

    Args:
        info: the workload.
        cells: of the run; those of other workloads are left aside.
        device_phrase: where it ran, as a noun phrase: 'this CPU', 'one thread of this CPU'.
    """
    mine = [c for c in cells if c.workload == info.name]
    arms = [c for c in mine if c.arm == "strategy" and c.name != "dense"]
    if not arms and not info.points:
        return _static(info, mine, device_phrase)
    if not arms:
        return f"{info.title}: no dynamic strategy was measured."
    timed = [c for c in arms if c.status == "ok" and primary_speedup(c) is not None]
    source = _source(timed or arms)
    arms = [c for c in arms if c.decisions.label == source.label]
    timed = [c for c in timed if c.decisions.label == source.label]
    sentences = [_saved(info, source, arms, _baseline(mine)), *_declared(info, source)]
    if timed:
        sizes = sorted({c.batch_size for c in timed}, reverse=True)
        at = {n: sorted((c for c in timed if c.batch_size == n), key=_rank, reverse=True) for n in sizes}
        sentences.append(f"On {device_phrase} {_measured(at[sizes[0]])}.")
        sentences += _otherwise(at)
        sentences += _failures([c for c in arms if c.status == "failed" and c.batch_size == sizes[0]])
    elif any(c.status == "ok" for c in arms):
        sentences.append(_no_baseline(mine))
    else:
        sentences.append(f"Nothing was timed: {_reasons(arms)}.")
    return " ".join(sentences)


def _static(info: WorkloadInfo, cells: list[Cell], device_phrase: str) -> str:
    """Of networks without decisions: what each gave against the primary one."""
    head = f"{info.title}: nothing depends on the input"
    timed = [c for c in cells if c.status == "ok" and primary_speedup(c) is not None]
    if not timed:
        return f"{head}."
    largest = max(c.batch_size for c in timed)
    said = ", ".join(
        f"{c.name if c.arm == 'baseline' else info.model.rpartition(':')[2]} {_with_interval(_speedup(c))[0]}"
        f"{_doubt(c)}"
        for c in timed
        if c.batch_size == largest
    )
    return f"{head}. On {device_phrase} at batch {largest}, against {_speedup(timed[0]).baseline}: {said}."


def _source(arms: list[Cell]) -> Decisions:
    return min((c.decisions for c in arms), key=lambda d: SOURCES.index(d.source))


def _baseline(cells: list[Cell]) -> str | None:
    names = [c.name for c in cells if c.arm == "baseline" and c.primary]
    names += [s.baseline for c in cells if (s := primary_speedup(c)) is not None]
    return next(iter(names), None)


def _speedup(cell: Cell) -> Speedup:
    found = primary_speedup(cell)
    assert found is not None
    return found


def _value(cell: Cell) -> float:
    return _speedup(cell).value


def _rank(cell: Cell) -> tuple[int, float]:
    """What is certain counts before how much: 1.1x that may be none comes after a certain 1.05x."""
    return ("slower", "unclear", "faster").index(_call(_speedup(cell))), _value(cell)


# --- what is saved ---------------------------------------------------------------------------------------------------


def _saved(info: WorkloadInfo, source: Decisions, arms: list[Cell], baseline: str | None) -> str:
    ideal = next((g.ideal for c in arms if (g := gap(c)).ideal is not None), None)
    whose = "the dense network" if baseline in (None, "dense") else baseline
    doing = _doing(info, source)
    percent = None if ideal is None else round(100 * (1 - 1 / ideal))
    unknown = ""
    if percent is None:
        doing = ["skips part of its computation"] if doing == ["skips"] else doing
        unknown = f"; how much computation that saves is {_why_no_ideal(arms)}"
    elif percent > 0 and doing == ["skips"]:
        doing = [f"skips {percent} % of the computation of {whose}"]
    elif percent > 0:
        doing.append(f"saves {percent} % of the computation of {whose}")
    else:
        asks = f"asks for {-percent} % more computation than" if percent else "saves nothing against"
        doing.append(f"{asks} {whose}")
    return f"{_given(source)}{info.title} {_listed(doing)}{_accuracy(info, source, baseline)}{unknown}."


def _declared(info: WorkloadInfo, source: Decisions) -> list[str]:
    """Sentences on who else is asked: its time is in no speed-up."""
    return [
        f"{100 * d.share:.0f} % of the items end at a {d.what}, whose {d.latency_s:g} s and {d.cost:g} {d.unit} per "
        "query are declared, not measured, and in no time below."
        for d in info.declared
        if d.decisions == source.label
    ]


def _doing(info: WorkloadInfo, source: Decisions) -> list[str]:
    doing = [_experts(info, source)] if "Route" in info.points else []
    if "Program" in info.points:
        doing.append("composes its modules for each item")
    if "Skip" in info.points:
        doing.append("skips")
    if "Exits" in info.points or "Loop" in info.points:
        doing.append("leaves early")
    if not doing and set(info.points) == {"Choice"}:
        return ["decides what to look at"]
    return doing or ["decides what to compute"]


def _experts(info: WorkloadInfo, source: Decisions) -> str:
    metrics = " ".join(a.metric for a in info.accuracies.values())
    item = "token" if any(w in f"{info.inputs} {metrics}".lower() for w in ("token", "byte", "text")) else "item"
    experts, k = info.model_args.get("experts"), info.model_args.get("k")
    if k is None and isinstance(experts, int) and source.keep_rate is not None and len(info.points) == 1:
        k = round(source.keep_rate * experts)
    return f"uses {k} of {experts} experts per {item}" if k and experts else f"uses some of its experts per {item}"


def _given(source: Decisions) -> str:
    rate = "" if source.keep_rate is None else f" (keep-rate {source.keep_rate:.2f})"
    return {
        "learned": "",
        "replay": f"With decisions replayed from a trace{rate} ",
        "published": f"With decisions made up at the published rate{rate} ",
        "synthetic": f"With made-up decisions{rate} ",
    }[source.source]


def _why_no_ideal(arms: list[Cell]) -> str:
    for flops in (c.flops for c in arms if c.flops is not None):
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
    change = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} {ours.metric}"
    n = min(ours.items, theirs.items)
    variance = sum(max(0.0, p * (1 - p)) for p in (ours.value, theirs.value))
    doubt = f", less than {n} inputs can resolve" if n and abs(points) < 196 * math.sqrt(variance / n) else ""
    return f" at {change} ({both}{doubt})"


def _level(accuracy: Accuracy, value: float) -> str:
    number = f"{100 * value:.1f} %" if "accuracy" in accuracy.metric else f"{value:.3f}"
    return f"{number} {accuracy.metric}"


# --- what it becomes -------------------------------------------------------------------------------------------------


def _measured(ranked: list[Cell]) -> str:
    """`ranked`: timed cells of one batch size, best first."""
    best, others = ranked[0], [c for c in ranked[1:] if c.name != "per_sample"]
    against = f"{_speedup(best).baseline} at batch {best.batch_size}"
    call = _call(_speedup(best))
    ideal = next((g.ideal for c in ranked if (g := gap(c)).ideal is not None), None)
    if call == "faster":
        value, interval = _with_interval(_speedup(best))
        becomes, into = ("gives", "") if ideal is not None and ideal <= 1 else ("turns that into", "into ")
        head = f"{_name(best)} {becomes} {value} against {against} ({interval})"
    else:
        if call == "unclear":
            head = f"no strategy is measurably faster than {against}"
        else:
            head = f"{'every strategy measured' if len(ranked) > 1 else _name(best)} is slower than {against}"
        head += f": {_name(best)} gives {' ('.join(_with_interval(_speedup(best)))})"
        into = ""
    tail = "".join(f", {_name(c)} {into}{_times(_value(c))}{_doubt(c)}" for c in others)
    return f"{head}{tail}" + ("" if ideal is None else f"; the ideal is {_times(ideal)}")


def _otherwise(at: dict[int, list[Cell]]) -> list[str]:
    """A sentence on the smallest batch size whose best strategy ends otherwise than at the largest."""
    largest = max(at)
    for size in sorted(at):
        best = at[size][0]
        call = _call(_speedup(best))
        if call == _call(_speedup(at[largest][0])):
            continue
        what = {"faster": "", "unclear": "nothing is measurably faster: ", "slower": "everything is slower: "}[call]
        return [f"At batch {size} {what}{_name(best)} gives {' ('.join(_with_interval(_speedup(best)))})."]
    return []


def _failures(failed: list[Cell]) -> list[str]:
    return [f"At batch {failed[0].batch_size} {_reasons(failed)}."] if failed else []


def _no_baseline(cells: list[Cell]) -> str:
    bases = [c for c in cells if c.arm == "baseline" and c.primary]
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


def _call(found: Speedup) -> str:
    return ("unclear", "faster", "slower")[call(found)]


def _doubt(cell: Cell) -> str:
    return " (not told apart from 1x)" if _call(_speedup(cell)) == "unclear" else ""


def _with_interval(found: Speedup) -> tuple[str, str]:
    """Value and interval, with a digit more where rounding would move an end of the interval onto 1."""
    ends = (found.low, found.high)
    digits = 3 if any(round(e, 2) == 1 and e != 1 for e in ends) else 2
    low, high = (f"{e:.{digits}f}" if e >= 0.1 else f"{e:.2g}" for e in ends)
    inside = ""
    if found.resolution is not None and call(found) == 0 and (found.low > 1 or found.high < 1):
        inside = f"; the baseline measured twice may differ by {100 * found.resolution:.1f} %"
    return _times(found.value, digits), f"{100 * found.confidence:g} % CI {low} to {high}{inside}"


def _times(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}x" if value >= 0.1 else f"{value:.2g}x"


def _name(cell: Cell) -> str:
    return "per-sample execution" if cell.name == "per_sample" else cell.name


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _short(reason: str) -> str:
    return reason.strip().rstrip(".")
