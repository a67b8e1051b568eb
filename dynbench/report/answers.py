"""Answers to the questions behind dynamic networks, from all workloads of a run: sentences, a figure and its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dynbench.analysis.formatting import percent, times
from dynbench.analysis.overview import (
    PROMISING,
    Batch,
    Standing,
    Summary,
    break_evens,
    causes,
    median,
    quartiles,
    told,
)
from dynbench.analysis.resolution import direction
from dynbench.report.answer import Answer, folded
from dynbench.report.content import Panel
from dynbench.report.expression import lines_of_code
from dynbench.report.language import language_models
from dynbench.report.modularity import modularity
from dynbench.report.overview_drawings import Ladder, Shares, Spread, Spreads
from dynbench.report.palette import OUTCOMES, SERIES
from dynbench.report.published import counterparts
from dynbench.report.tables import Row
from dynbench.report.values import count, number, ratio, words
from dynbench.report.waterfall import ATTACH
from dynbench.store.run import Run

CAUSES = {
    "surplus": "surplus work",
    "decisions": "deciding",
    "movement": "moving",
    "waiting": "waiting",
    "utilisation": "lower utilisation",
    "fewer_items": "fewer items per call",
    "moving": "moving",
    "deciding": "deciding",
    "engine": "another engine",
    "rest": "the rest",
}
IN_WORDS = {"faster": "faster", "unclear": "not told apart", "slower": "slower"}
STEPS = ("promised by counting", "as published: masking", "best strategy as written", "deployed", "against any static")


def answers(run: Run, summaries: Sequence[Summary], batches: Sequence[Batch]) -> list[Answer]:
    """All questions that the run has something to say about.

    Args:
        run: of several workloads.
        summaries: of each of them.
        batches: the same by batch size; empty where nothing was timed.
    """
    if not batches:
        return []
    return [
        _time_energy_memory(run, batches),
        _evaluations(summaries),
        _hardware(batches),
        _expression(run, summaries),
        *modularity(summaries),
        *language_models(summaries),
    ]


# --- 1: less computation, less time? ---------------------------------------------------------------------------------


def _time_energy_memory(run: Run, batches: Sequence[Batch]) -> Answer:
    last = batches[-1]
    sentences = []
    for batch in batches:
        timed = len(batch.standings)
        sentences.append(
            f"At batch {batch.batch_size} less computation is less time for {batch.outcomes['faster']} of {timed} "
            f"networks ({percent(batch.outcomes['faster'] / timed)}), and more time for {batch.outcomes['slower']}."
        )
    if (efficiency := last.median("efficiency")) is not None:
        sentences.append(
            f"Of the ideal speed-up the median network keeps {percent(efficiency)} at batch {last.batch_size}."
        )
    memory = [s.memory for s in last.standings if s.memory is not None]
    if memory:
        less = sum(m < 0.98 for m in memory)
        sentences.append(
            f"Peak memory is {times(float(median(memory) or 0))} that of the static network in the median, and less by "
            f"2 % or more for {less} of {len(memory)}."
        )
    energy = [s.energy for s in last.standings if s.energy is not None]
    if energy:
        sentences.append(f"Energy per item is {times(float(median(energy) or 0))} that of the static network.")
    else:
        sentences.append(f"Energy was not measured on this machine. {ATTACH}")
    even = break_evens(run.manifest.workloads, run.cells)
    if even:
        rates = [e.rate for e in even if e.rate is not None]
        text = f"In {len(even)} keep-rate sweeps"
        if rates:
            low, middle, high = quartiles(rates) or (0.0, 0.0, 0.0)
            text += (
                f" {len(rates)} have a break-even: the median is a keep-rate of {percent(middle)} (middle half "
                f"{percent(low)} to {percent(high)})"
            )
        if never := len(even) - len(rates):
            text += f"{', and' if rates else ''} {never} do not pay at any rate that was measured"
        sentences.append(f"{text}; as written, in eager PyTorch.")
    rows: list[Row] = [
        {
            "batch": count(batch.batch_size),
            "workloads": count(len(batch.standings)),
            **{f"outcome_{name}": count(batch.outcomes[name]) for name in OUTCOMES},
            "median_ideal": ratio(batch.median("ideal")),
            "median_speedup": ratio(batch.speedup),
            "median_efficiency": number(_hundred(batch.median("efficiency"))),
            "median_memory": ratio(batch.median("memory")),
            "median_energy": ratio(batch.median("energy")),
        }
        for batch in batches
    ]
    keys = ["batch", "workloads", *(f"outcome_{name}" for name in OUTCOMES), "median_ideal", "median_speedup"]
    keys += ["median_efficiency", "median_memory", "median_energy"]
    blocks = [folded("By batch size", "answer time", keys, rows)]
    if even:
        found: list[Row] = [
            {
                "workload": words(e.workload),
                "batch": count(e.batch_size),
                "strategy": words(e.strategy),
                "break_even": number(_hundred(e.rate)) if e.rate is not None else words(f"below {percent(e.lowest)}"),
            }
            for e in even
        ]
        blocks.append(
            folded("Break-even keep-rates", "answer break-even", ["workload", "batch", "strategy", "break_even"], found)
        )
    drawing = Shares(
        title="workloads",
        rows=[f"batch {batch.batch_size}" for batch in batches],
        parts=[(IN_WORDS[name], name) for name in OUTCOMES],
        counts=[[batch.outcomes[name] for name in OUTCOMES] for batch in batches],
    )
    alt = "; ".join(
        f"batch {b.batch_size}: " + ", ".join(f"{b.outcomes[n]} {IN_WORDS[n]}" for n in OUTCOMES) for b in batches
    )
    panel = Panel("answer-time", "Outcomes by batch size", "Counted in workloads.", f"{alt}.", drawing)
    question = "Does less computation mean less time, energy and memory?"
    return Answer("answer-time", question, sentences, [panel], blocks)


def _hundred(share: float | None) -> float | None:
    return None if share is None else 100 * share


# --- 2: what do evaluations miss? ------------------------------------------------------------------------------------


def _evaluations(summaries: Sequence[Summary]) -> Answer:
    """From what counting promises to what remains against any static network, at the largest batch size."""
    promising = [(s, s.judged) for s in summaries if s.promised is not None and s.promised >= PROMISING]
    known = [(s, judged) for s, judged in promising if judged is not None]
    if not known:
        sentence = f"No timed workload of this run has a counting rule that promises {times(PROMISING, 1)} or more."
        return Answer("answer-evaluations", QUESTION_2, [sentence], [], [])
    lines = [_ladder_line(s, judged) for s, judged in known]
    faster = Counter[str]()
    for _, judged in known:
        steps = {
            "masking": judged.masking and judged.masking.speedup,
            "written": judged.written and judged.written.speedup,
            "deployed": judged.deployed and judged.deployed.speedup,
            "static": judged.against_static,
        }
        faster.update(name for name, found in steps.items() if found is not None and direction(found) == "faster")
    n = len(known)
    sentences = [
        f"Of {n} networks whose papers' counting promises {times(PROMISING, 1)} or more, {faster['masking']} are "
        f"measurably faster in the form that is usually published, which computes everything and masks, and "
        f"{faster['written']} with the best strategy as written."
    ]
    if any(judged.deployed is not None for _, judged in known):
        sentences.append(
            f"{faster['deployed']} are faster deployed against deployed, and {faster['static']} remain so when any "
            "static network of the workload that is at least as accurate may be used instead."
        )
    medians = [median(line[i] for line in lines) for i in range(len(STEPS))]
    said = [f"{step} {times(value)}" for step, value in zip(STEPS, medians, strict=True) if value is not None]
    sentences.append(f"Medians: {'; '.join(said)}.")
    executed = [s.executed for s, _ in known if s.executed is not None]
    if executed:
        sentences.append(
            f"What masking executes is {times(float(median(1 / e for e in executed) or 0))} the dense FLOPs in the "
            f"median, though {percent(1 - 1 / float(median(s.promised for s, _ in known) or 1))} are counted as saved."
        )
    rows: list[Row] = [
        {"workload": words(s.info.title), "batch": count(judged.batch_size)}
        | {f"step_{i}": ratio(value) for i, value in enumerate(line)}
        | {"stronger_static": words(_stronger(judged))}
        for (s, judged), line in zip(known, lines, strict=True)
    ]
    keys = ["workload", "batch", *(f"step_{i}" for i in range(len(STEPS))), "stronger_static"]
    alt = "; ".join(f"{step}: {times(v)}" for step, v in zip(STEPS, medians, strict=True) if v is not None)
    panel = Panel(
        "answer-evaluations",
        "From what is counted to what is deployed",
        "A thin line per workload, at its largest batch size; thick: medians.",
        f"Median speed-ups. {alt}.",
        Ladder(list(STEPS), lines, medians),
    )
    blocks = [folded("Every workload", "answer steps", keys, rows)]
    if claimed := list(counterparts(summaries)):
        keys = ["method", "published_claim", "known_from", "published_doubt", "workload", "batch", "saved"]
        keys += ["claim_ideal", "step_1", "step_2", "step_3", "counterpart_note"]
        blocks.append(folded("What is claimed, and what was measured here", "answer claims", keys, claimed))
    return Answer("answer-evaluations", QUESTION_2, sentences, [panel], blocks)


QUESTION_2 = "What do existing evaluations miss?"


def _ladder_line(summary: Summary, judged: Standing) -> list[float | None]:
    found = [judged.masking, judged.written, judged.deployed]
    static = judged.against_static
    return [
        summary.promised,
        *(None if t is None else t.speedup.value for t in found),
        None if static is None else static.value,
    ]


def _stronger(judged: Standing) -> str | None:
    static, deployed = judged.against_static, judged.deployed
    if static is None or deployed is None or static.baseline == deployed.speedup.baseline:
        return None
    return static.baseline


# --- 3: what follows for hardware and runtimes? ----------------------------------------------------------------------


def _hardware(batches: Sequence[Batch]) -> Answer:
    ends = [*batches[:1], *batches[1:][-1:]]
    by_size = {batch.batch_size: causes(batch.standings) for batch in ends}
    names = list(dict.fromkeys(cause for found in reversed(by_size.values()) for cause in found))
    if not names:
        sentence = "No losses are known: no strategy was timed as written with its counters and its profile."
        return Answer("answer-hardware", QUESTION_3, [sentence], [], [])
    kept = {batch.batch_size: told(batch.standings) for batch in ends}
    largest = {size: Counter(s.largest_loss[0] for s in found if s.largest_loss) for size, found in kept.items()}
    sentences = []
    for size, found in by_size.items():
        worst = next(iter(found), None)
        if worst is None:
            continue
        n = sum(largest[size].values())
        most, times_most = largest[size].most_common(1)[0]
        sentences.append(
            f"At batch {size} the largest loss is {CAUSES.get(most, most)} for {times_most} of {n} networks, "
            f"{_form(kept[size])}; its median factor is {times(float(median(found[most]) or 1))}."
        )
    sentences.append("A factor of 1.20x means that the network would be 1.2 times as fast without this loss.")
    if any(s.by_controls for found in kept.values() for s in found):
        sentences.append(
            "Measured by controls, arms of the same rounds that leave one part out, where there are some; the rest is "
            "what no control tells apart."
        )
    if any(not s.by_controls for found in kept.values() for s in found):
        sentences.append(
            "Without controls, losses are from counters and profile; lower utilisation is what they leave over: fewer "
            "items per call, mostly."
        )
    rows: list[Row] = []
    for size, found in by_size.items():
        for cause in names:
            if (spread := quartiles(found.get(cause, []))) is not None:
                rows.append(
                    {
                        "cause": words(CAUSES.get(cause, cause)),
                        "batch": count(size),
                        "workloads": count(len(found[cause])),
                        "median_loss": ratio(spread[1]),
                        "lower_quartile": ratio(spread[0]),
                        "upper_quartile": ratio(spread[2]),
                        "largest_for": count(largest[size][cause]),
                    }
                )
    keys = ["cause", "batch", "workloads", "median_loss", "lower_quartile", "upper_quartile", "largest_for"]
    series = [(f"batch {size}", tone) for size, tone in zip(by_size, SERIES, strict=False)]
    values = [[_spread(by_size[size].get(cause, [])) for size in by_size] for cause in names]
    drawing = Spreads("loss as a factor (median and middle half)", [CAUSES.get(c, c) for c in names], series, values)
    alt = "; ".join(f"{r['cause'].text} at batch {r['batch'].text}: {r['median_loss'].text}" for r in rows)
    panel = Panel(
        "answer-hardware",
        "Losses by cause",
        "Over all workloads: " + "; ".join(f"at batch {size} {_form(s)}" for size, s in kept.items()) + ".",
        f"Median loss factors. {alt}.",
        drawing,
    )
    return Answer("answer-hardware", QUESTION_3, sentences, [panel], [folded("By cause", "answer losses", keys, rows)])


QUESTION_3 = "What follows for hardware and runtimes?"


def _form(found: Sequence[Standing]) -> str:
    """Whose losses are put together."""
    return "deployed" if any(s.of_deployed for s in found) else "the best strategy as written"


def _spread(factors: Sequence[float]) -> Spread | None:
    found = quartiles(factors)
    return None if found is None else Spread(*found)


# --- 4: how hard is a dynamic graph to express? ----------------------------------------------------------------------


def _expression(run: Run, summaries: Sequence[Summary]) -> Answer:
    """What became of the networks as one graph, and of their regions under torch.compile."""
    titles = {s.info.name: s.info.title for s in summaries}
    graph: dict[str, bool] = {}
    why: dict[str, str] = {}
    for cell in (c for c in run.cells if c.arm.kind == "strategy" and c.deployed):
        for tried in (c for c in cell.candidates if c.arm.control == "graph"):
            done = tried.ratio is not None
            graph[cell.workload] = graph.get(cell.workload, False) or done
            if not done:
                why.setdefault(cell.workload, tried.reason or "no reason was stored")
    sentences = []
    if graph:
        could = sum(graph.values())
        sentences.append(
            f"{could} of {len(graph)} dynamic networks ran as one graph in which skipped work is skipped, each proved "
            "equal to its item-by-item form before it was timed; no line of their models was changed for it."
        )
    refused = {name: reason for name, reason in why.items() if not graph[name]}
    if refused:
        sentences.append(f"{len(refused)} could not be expressed so; the table names what is in the way.")
    compiled = [c for c in run.cells if c.compiled is not None and c.status == "ok" and c.arm.kind == "strategy"]
    if compiled:
        breaks = sum(len(c.compiled.graph_breaks) for c in compiled if c.compiled is not None)
        again = sum(c.compiled.compilations - c.compiled.regions for c in compiled if c.compiled is not None)
        regions = sum(c.compiled.regions for c in compiled if c.compiled is not None)
        sentences.append(
            f"torch.compile prepared {regions} regions of {len(compiled)} arms with {breaks} graph breaks and {again} "
            "further compilations for other sizes."
        )
    else:
        sentences.append("torch.compile was not tried in this run (`--engine compile`).")
    strategies = sorted({c.arm.strategy for c in run.cells if c.arm.strategy is not None and c.status == "ok"})
    sentences.append(
        f"{len(strategies)} strategies ran ({', '.join(strategies)}) with no line of a model changed per strategy: a "
        "model states what is decided, a strategy how it is carried out."
    )
    about_lines, counted = lines_of_code(summaries)
    sentences += about_lines
    if not graph:
        return Answer("answer-expression", QUESTION_4, sentences, [], counted)
    kinds: dict[str, Counter[bool]] = {}
    for summary in summaries:
        if summary.info.name in graph:
            kinds.setdefault(summary.kind, Counter())[graph[summary.info.name]] += 1
    rows: list[Row] = [{"workload": words(titles[n]), "reason": words(reason)} for n, reason in sorted(refused.items())]
    blocks = [folded("Not expressed as one graph", "answer refused", ["workload", "reason"], rows)] if rows else []
    blocks += counted
    drawing = Shares(
        title="workloads",
        rows=list(kinds),
        parts=[("one graph, proved", "faster"), ("refused, with the reason", "slower")],
        counts=[[counts[True], counts[False]] for counts in kinds.values()],
    )
    alt = "; ".join(f"{kind}: {c[True]} as one graph, {c[False]} refused" for kind, c in kinds.items())
    panel = Panel("answer-expression", "Dynamic networks as one graph", "By kind of decision.", f"{alt}.", drawing)
    return Answer("answer-expression", QUESTION_4, sentences, [panel], blocks)


QUESTION_4 = "How hard is a dynamic graph to express?"
