"""What was found for one workload, in a few sentences that the numbers bear out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dynbench.analysis.formatting import digits_of, interval, percent, times, way_in_words
from dynbench.analysis.gap import best_speedup, deployed_speedup, gap, is_written, waterfall_of
from dynbench.analysis.headline import Alternative, Contest, Timed, alternatives, contest, of_one_device, timed
from dynbench.analysis.resolution import direction
from dynbench.analysis.waterfall import sentence
from dynbench.store.quantities import ideal_of
from dynbench.store.schema import Accuracy, Cell, Decisions, Speedup, WorkloadInfo
from dynbench.unavailable import Unavailable


def verdict(info: WorkloadInfo, cells: list[Cell], device_phrase: str) -> str:
    """The `paragraphs` as one text."""
    return " ".join(paragraphs(info, cells, device_phrase))


def paragraphs(info: WorkloadInfo, cells: list[Cell], device_phrase: str) -> list[str]:
    """Says what to use, what is saved, what it costs in accuracy, and what it becomes in time.

    Where a static network is both faster and at least as accurate, the first sentence says so. Then follow what is
    saved, the dynamic network against the static one in their fastest ways (where ways were tried), both as written,
    and static networks that are faster but less accurate. It is about the largest batch size that was measured, and
    adds a smaller one where that ends otherwise. A difference whose interval contains 1 is called neither faster nor
    slower. What was not measured is said with its reason.

    Args:
        info: the workload.
        cells: of the run; those of other workloads are left out.
        device_phrase: where it ran, as a noun phrase: 'this CPU', 'one thread of this CPU'.
    """
    mine = of_one_device([c for c in cells if c.workload == info.name])
    found = contest(info.name, mine)
    if info.opaque and not info.points:
        return [*_opaque_alone(info, mine, device_phrase), *info.notes]
    if found is None and not info.points:
        return [_static(info, mine, device_phrase)]
    if found is None:
        return [f"{info.title}: no dynamic strategy was measured."]
    others = alternatives(info, found)
    parts = [_recommended(info, found, others), [_saved(info, found, mine), *_declared(info, found.source)]]
    if found.deployed:
        parts.append(_deployed(found, mine, device_phrase))
    elif any(c.deployed for c in mine):
        parts.append([f"Deployed against deployed was not measured: {_why_not_deployed(found, mine)}."])
    if found.ranked:
        parts.append(_written(found, device_phrase))
    elif any(c.status == "ok" for c in found.entrants):
        parts.append([_no_baseline(mine)])
    elif found.entrants and not found.deployed:
        parts.append([f"Nothing was timed: {_reasons(found.entrants)}."])
    parts.append(_where_it_goes(found))
    parts.append(_less_accurate(info, others))
    parts.append([sentence for name in info.opaque if (sentence := _beside_opaque(name, found.source, mine))])
    parts.append(info.notes)
    return [" ".join(sentences) for sentences in parts if sentences]


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
    text = f"{head}. On {device_phrase} at batch {largest}, against {against}: {', '.join(each)}."
    fastest = [
        f"{c.arm.name} {times(s.value, digits_of(s))}{_doubt(s)}"
        for c in cells
        if c.status == "ok" and c.batch_size == largest and (s := deployed_speedup(c)) is not None
    ]
    return f"{text} Each in its fastest way: {', '.join(fastest)}." if fastest else text


def _opaque_alone(info: WorkloadInfo, cells: list[Cell], device_phrase: str) -> list[str]:
    """Of a workload whose model is opaque: what it gave against the primary baseline at every batch size."""
    mine = [c for c in cells if c.arm.kind == "opaque"]
    head = f"{info.title} decides by control flow of its own, in which no decision can be seen"
    failed = [c for c in mine if c.status != "ok"]
    why = [f"{_reasons(failed)}."] if failed else []
    each = [
        f"{t.cell.arm.name} gives {_value(t)} at batch {t.cell.batch_size}"
        for t in sorted(timed(mine), key=lambda t: t.cell.batch_size)
    ]
    if not each:
        return [f"{head}. {' '.join(why) or _no_baseline(cells)}"]
    against = timed(mine)[0].speedup.baseline
    return [f"{head}. On {device_phrase}, against {against}, {', '.join(each)}.", *why]


def _beside_opaque(name: str, source: Decisions, cells: list[Cell]) -> str:
    """What the strategies give against an opaque network in the same rounds; where it failed, why; else nothing."""
    own = [c for c in cells if c.arm.kind == "opaque" and c.arm.name == name and c.decisions.label == source.label]
    if failed := [c for c in own if c.status in ("failed", "refused")]:
        return f"Beside it {_reasons(failed)}."
    each = []
    for size in sorted({c.batch_size for c in own}):
        found = _against(name, [c for c in cells if c.batch_size == size and c.decisions.label == source.label])
        if found:
            each.append(f"{', '.join(f'{_name(t.cell)} gives {_value(t)}' for t in found)} at batch {size}")
    return f"Against {name}, code with control flow of its own, {'; '.join(each)}." if each else ""


def _against(name: str, cells: list[Cell]) -> list[Timed]:
    """Masking, and the best strategy that computes whole batches, against a network; the best first."""
    found = [
        Timed(c, s)
        for c in cells
        if c.status == "ok" and c.arm.kind == "strategy" and not (c.static_twin or c.item_by_item)
        for s in c.speedups
        if s.baseline == name
    ]
    found.sort(key=lambda t: -t.speedup.value)
    return [t for i, t in enumerate(found) if i == 0 or t.cell.arm.strategy == "masking"]


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
        if cell.arm.kind == "baseline" and cell.primary and is_written(cell):
            return _Baseline(cell.arm.name, "the dense network" if cell.static_twin else cell.arm.name)
    name = next((s.baseline for c in cells if (s := best_speedup(c)) is not None), None)
    return _Baseline(name, name or "the dense network")


# --- what is saved ---------------------------------------------------------------------------------------------------


def _saved(info: WorkloadInfo, found: Contest, cells: list[Cell]) -> str:
    source, baseline = found.source, _baseline(cells)
    strategies = [*found.entrants, *(t.cell for t in found.deployed.values())]
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
        if isinstance(found := ideal_of(flops), Unavailable):
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
    if theirs is None or isinstance(theirs.value, Unavailable) or theirs.metric != ours.metric:
        return f", at {_level(ours, ours.value)} ({baseline or 'primary baseline'} unknown)"
    if not ours.in_percent:
        return f", at {_both(ours, ours.value, theirs.value)}"
    points = 100 * (ours.value - theirs.value)
    if abs(points) < 0.05:
        return f" at the same {ours.metric} ({_percents(ours.value, theirs.value)})"
    difference = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} {ours.metric}"
    inputs = _cannot_resolve(ours, theirs)
    doubt = f", less than {inputs} inputs can resolve" if inputs else ""
    return f" at {difference} ({_percents(ours.value, theirs.value)}{doubt})"


def _percents(one: float, other: float) -> str:
    return f"{100 * one:.1f} against {100 * other:.1f} %"


def _both(metric: Accuracy, one: float, other: float) -> str:
    """'90.9 against 89.9 % top-1 accuracy', '2.250 against 2.310 bits per byte, lower is better'."""
    better = "" if metric.higher_is_better else ", lower is better"
    if metric.in_percent:
        return f"{_percents(one, other)} {metric.metric}{better}"
    return f"{one:.3f} against {other:.3f}{_unit(metric)} {metric.metric}{better}"


def _cannot_resolve(one: Accuracy, other: Accuracy) -> int | None:
    """The number of inputs where that is too small for the difference of two accuracies; else None."""
    n = min(one.items, other.items)
    if not one.share_of_items or not n or isinstance(one.value, Unavailable):
        return None
    if isinstance(other.value, Unavailable):
        return None
    variance = sum(max(0.0, p * (1 - p)) for p in (one.value, other.value))
    difference = abs(one.value - other.value)
    return n if 0 < difference < 1.96 * math.sqrt(variance / n) else None


def _level(accuracy: Accuracy, value: float) -> str:
    number = f"{100 * value:.1f} %" if accuracy.in_percent else f"{value:.3f}{_unit(accuracy)}"
    return f"{number} {accuracy.metric}"


def _unit(metric: Accuracy) -> str:
    """' mm', or nothing; percents are said with their number."""
    return f" {metric.unit}" if metric.unit and not metric.in_percent else ""


# --- what to use -----------------------------------------------------------------------------------------------------


def _recommended(info: WorkloadInfo, found: Contest, others: dict[int, list[Alternative]]) -> list[str]:
    """Which static network to use instead, where one is faster and at least as accurate.

    Of the largest batch size, and of the smallest one where that ends otherwise.
    """
    ends = dict.fromkeys((max(others), min(others))) if others else {}
    picks = {size: others[size][0] for size in ends if others[size] and others[size][0].gain >= 0}
    at = {name: [size for size in picks if picks[size].name == name] for name in (p.name for p in picks.values())}
    ways = "each in its fastest way" if found.deployed else "both as written"
    sentences = []
    for name, sizes in at.items():
        head = "Use" if len(sizes) == len(ends) else f"At batch {sizes[0]} use"
        than = [f" as fast as {info.title}"] + [""] * (len(sizes) - 1)
        speeds = [_as_fast(picks[size], f"{words} at batch {size}") for size, words in zip(sizes, than, strict=True)]
        accurate = _accurate(info, picks[sizes[0]])
        sentences.append(f"{head} {name}: it is {' and '.join(speeds)}, {ways}, and {accurate}.")
    return sentences


def _as_fast(other: Alternative, words: str) -> str:
    """How many times as fast the static network is: '1.38x as fast at batch 32 (95 % CI 1.32 to 1.40)'."""
    back = _inverse(other.speedup)
    return f"{times(back.value, digits_of(back))}{words} ({percent(back.confidence)} CI {interval(back)})"


def _inverse(found: Speedup) -> Speedup:
    ends = {"value": 1 / found.value, "low": 1 / found.high, "high": 1 / found.low}
    return found.model_copy(update=ends)


def _accurate(info: WorkloadInfo, other: Alternative) -> str:
    """'more accurate (90.9 against 89.9 % top-1 accuracy, a difference too small for 1000 inputs to resolve)'."""
    ours, theirs = info.accuracies["dynamic"], info.accuracies[other.name]
    assert not isinstance(ours.value, Unavailable) and not isinstance(theirs.value, Unavailable)
    more, same, less = (
        ("more accurate", "as accurate", "less accurate") if ours.in_percent else ("better", "as good", "worse")
    )
    word = same if other.gain == 0 else more if other.gain > 0 else less
    inputs = _cannot_resolve(ours, theirs)
    doubt = f", a difference too small for {inputs} inputs to resolve" if inputs else ""
    return f"{word} ({_both(ours, theirs.value, ours.value)}{doubt})"


def _less_accurate(info: WorkloadInfo, others: dict[int, list[Alternative]]) -> list[str]:
    """A sentence on each static network that is faster, but less accurate, at the largest batch size."""
    if not others:
        return []
    largest = max(others)
    return [
        f"{other.name} is {_as_fast(other, f' as fast at batch {largest}')}, but {_accurate(info, other)}."
        for other in others[largest]
        if other.gain < 0
    ]


# --- deployed against deployed ---------------------------------------------------------------------------------------


def _deployed(found: Contest, cells: list[Cell], device_phrase: str) -> list[str]:
    """The dynamic network in its fastest way against the static one in its own."""
    largest = max(found.deployed)
    best = found.deployed[largest]
    static = _deployed_primary(cells, best.cell)
    ideal = gap(best.cell).ideal
    tail = "" if ideal is None else f"; the ideal is {times(ideal)}"
    head = f"Deployed against deployed, on {device_phrase}"
    sentences = [f"{head}, {_stands(best, static)} at batch {largest}: {_value(best)}{tail}."]
    ends = direction(best.speedup)
    for size in sorted(found.deployed):
        other = found.deployed[size]
        if direction(other.speedup) != ends:
            static = _deployed_primary(cells, other.cell)
            sentences.append(f"At batch {size} {_stands(other, static)}: {_value(other)}.")
            break
    failed = [c for c in found.not_deployed if c.status == "failed" and not is_written(c) and c.batch_size > largest]
    return sentences + _failures(failed)


def _stands(best: Timed, static: str) -> str:
    """'compaction as one ONNX Runtime graph is faster than ResNet-38 as one ONNX Runtime graph'."""
    is_ = {"faster": "is faster than", "slower": "is slower than", "unclear": "is not measurably faster than"}
    arm = best.cell.arm
    return f"{arm.strategy} {way_in_words(arm)} {is_[direction(best.speedup)]} {static}"


def _value(best: Timed) -> str:
    return f"{times(best.speedup.value, digits_of(best.speedup))} ({_ends(best.speedup)})"


def _deployed_primary(cells: list[Cell], beside: Cell) -> str:
    """The primary baseline in its fastest way in the group of a cell: 'ResNet-38 as one ONNX Runtime graph'."""
    found = (c for c in cells if c.group_id == beside.group_id and c.deployed and c.arm.kind == "baseline")
    cell = next((c for c in found if c.primary), None)
    if cell is not None:
        return f"{cell.arm.name} {way_in_words(cell.arm)}"
    against = deployed_speedup(beside)
    return "the primary baseline" if against is None else against.baseline


def _why_not_deployed(found: Contest, cells: list[Cell]) -> str:
    failed = [c for c in found.not_deployed if c.status != "ok"]
    if failed:
        return _reasons(failed)
    if not found.not_deployed:
        return "no way of the dynamic network could be timed"
    bases = [c for c in cells if c.arm.kind == "baseline" and c.primary and c.deployed and c.status != "ok"]
    return _reasons(bases) if bases else f"no way of {_baseline(cells).phrase} could be timed"


# --- what it becomes -------------------------------------------------------------------------------------------------


def _written(found: Contest, device_phrase: str) -> list[str]:
    """The strategies as written, and what failed of them."""
    largest = max(found.ranked)
    if found.deployed:
        sentences = [f"As written, in eager PyTorch, {_measured(found.ranked[largest], alone=False)}."]
    else:
        sentences = [f"On {device_phrase} {_measured(found.ranked[largest], alone=True)}."]
    sentences += _otherwise(found.ranked, ", as written," if found.deployed else "")
    failed = [c for c in found.entrants if c.status == "failed" and c.batch_size == largest]
    return sentences + _failures(failed)


def _measured(ranked: list[Timed], *, alone: bool) -> str:
    """The cells of one batch size.

    Args:
        ranked: best first.
        alone: the sentence before says what is saved, and no other one names the ideal.
    """
    (best, speedup), *rest = ranked
    others = [t for t in rest if not t.cell.item_by_item]
    against = f"{speedup.baseline} at batch {best.batch_size}"
    ideal = next((g.ideal for t in ranked if (g := gap(t.cell)).ideal is not None), None)
    into = ""
    if direction(speedup) == "faster":
        gives = "gives"
        if alone and (ideal is None or ideal > 1):
            gives, into = "turns that into", "into "
        head = f"{_name(best)} {gives} {times(speedup.value, digits_of(speedup))} against {against} ({_ends(speedup)})"
    else:
        if direction(speedup) == "unclear":
            head = f"no strategy is measurably faster than {against}"
        else:
            head = f"{'every strategy measured' if len(ranked) > 1 else _name(best)} is slower than {against}"
        head += f": {_gives(ranked[0])}"
    tail = "".join(f", {_name(t.cell)} {into}{times(t.speedup.value)}{_doubt(t.speedup)}" for t in others)
    return f"{head}{tail}" + (f"; the ideal is {times(ideal)}" if alone and ideal is not None else "")


def _where_it_goes(found: Contest) -> list[str]:
    """The largest loss by controls, of what the workload is judged by; nothing where there are none."""
    best = found.best
    whole = None if best is None else waterfall_of(best.cell)
    if best is None or whole is None:
        return []
    how = f" {way_in_words(best.cell.arm)}" if found.deployed else ""
    return [sentence(f"{best.cell.arm.strategy}{how} at batch {best.cell.batch_size}", whole)]


def _otherwise(ranked: dict[int, list[Timed]], how: str) -> list[str]:
    """A sentence on the smallest batch size whose best strategy ends otherwise than at the largest; `how` it ran."""
    at_largest = direction(ranked[max(ranked)][0].speedup)
    for size in sorted(ranked):
        best = ranked[size][0]
        found = direction(best.speedup)
        if found != at_largest:
            what = {"faster": "", "unclear": "nothing is measurably faster: ", "slower": "everything is slower: "}
            return [f"At batch {size}{how} {what[found]}{_gives(best)}."]
    return []


def _failures(failed: list[Cell]) -> list[str]:
    return [f"At batch {failed[0].batch_size} {_reasons(failed)}."] if failed else []


def _no_baseline(cells: list[Cell]) -> str:
    bases = [c for c in cells if c.arm.kind == "baseline" and c.primary and is_written(c)]
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
