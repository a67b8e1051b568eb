"""Where the saving goes, by controls: what the figure shows, and the tables and sentences beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dynbench.analysis.formatting import times, way_in_words
from dynbench.analysis.gap import is_written
from dynbench.analysis.waterfall import IN_WORDS, sentence
from dynbench.report.columns import COLUMNS, Column
from dynbench.report.selection import View
from dynbench.report.tables import Block, Row, Section, make_table
from dynbench.report.values import Value, count, number, ratio, with_interval, words
from dynbench.store.schema import Cell, Factor, Waterfall
from dynbench.unavailable import Unavailable

WITHOUT_CONTROLS = "No controls were measured; `dynbench run --controls default`, or `all`, measures them."
ATTACH = (
    "Joules need a counter: a processor whose RAPL counters the system shows (/sys/class/powercap/intel-rapl*), with "
    "`pip install 'dynbench[energy]'`, or an NVIDIA GPU from Volta on, whose counter NVML reads (`--device cuda:0`). "
    "`dynbench doctor` says which counters it finds."
)
FACTOR_COLUMNS = [
    Column("of", "of", definition="How the dynamic network ran, and against what.", kind="text", stays=True),
    Column(
        "factor",
        "factor",
        definition="Surplus work: FLOPs executed over those that the decisions ask for. Fewer items per call: time per "
        "FLOP with as many items as each part is asked for, over that of whole batches. Moving items: gather and "
        "scatter. Deciding: gates, routers, policies and heads. Waiting and launching: what the host waits for and has "
        "to look at. Another engine: the primary baseline in the engine of the dynamic network, over the same in its "
        "fastest one. The rest: what no control tells apart.",
        kind="text",
        stays=True,
    ),
    Column(
        "lost",
        "ratio",
        "x (95 % CI)",
        "How many times as long it takes with this as without. The product of all is ideal / speed-up.",
        "a share of the time",
        stays=True,
    ),
    Column("by_controls", "by controls", "% of time", "Share of the time of the arm, as the difference of two arms."),
    Column("by_profile", "by profile", "% of time", "The same as the phases of one profiled pass say."),
    Column("how", "measured as", definition="Which arms were compared, in the same rounds.", kind="prose"),
]
JOULE_COLUMNS = [
    *FACTOR_COLUMNS[:2],
    Column(
        "lost_j",
        "ratio of energy",
        "x (95 % CI)",
        "How many times the joules it takes with this as without. The product of all is ideal / (energy of the primary "
        "baseline / energy of the arm). Energy is that of the device, idle power included; windows of arms follow one "
        "another, and are not interleaved.",
        "a share of the energy",
        stays=True,
    ),
    Column(
        "by_controls_j", "by controls", "% of energy", "Share of the energy of the arm: the difference of two arms."
    ),
    Column("how_j", "measured as", definition="Which arms were compared.", kind="prose"),
]


@dataclass(frozen=True)
class Step:
    """A factor between two speed-ups: from `start` down, or up, to `end`; its interval ends at `low` and `high`."""

    name: str
    factor: float
    start: float
    end: float
    low: float
    high: float


@dataclass(frozen=True)
class Fall:
    """From the ideal to the measured speed-up of one arm.

    Attributes:
        who: the arm, and whether it is deployed.
        batch_size: in items.
        baseline: what 1 stands for.
        tone: names its colour.
        ideal: where it begins.
        speedup: where it ends.
        steps: in between.
        of: 'time' or 'energy'.
    """

    who: str
    batch_size: int
    baseline: str
    tone: str
    ideal: float
    speedup: float
    steps: list[Step]
    of: Literal["time", "energy"] = "time"


def falls(view: View, tones: dict[str, str]) -> list[Fall]:
    """What is drawn of a view, at its largest batch size with controls: the deployed arm, and the best as written.

    Behind each the same of energy, where it was metered.
    """
    drawn = []
    for cell, found in _drawn(view):
        drawn.append(_fall(cell, found, tones))
        if (joules := _of_energy(cell, found)) is not None:
            drawn.append(replace(_fall(cell, joules, tones), who=_who(cell, found), of="energy"))
    return drawn


def _of_energy(cell: Cell, found: Waterfall) -> Waterfall | None:
    """The waterfall in joules that belongs to one in time."""
    return cell.deployed_energy_waterfall if found is cell.deployed_waterfall else cell.energy_waterfall


def _found(view: View) -> list[tuple[Cell, Waterfall]]:
    """Every waterfall of a view, the largest batch size first."""
    both = [
        (c, w) for c in view.cells if c.status == "ok" for w in (c.waterfall, c.deployed_waterfall) if w is not None
    ]
    return sorted(both, key=lambda pair: -pair[0].batch_size)


def _drawn(view: View) -> list[tuple[Cell, Waterfall]]:
    found = _found(view)
    if not found:
        return []
    largest = [(c, w) for c, w in found if c.batch_size == found[0][0].batch_size]
    written = sorted((p for p in largest if p[1] is p[0].waterfall), key=lambda p: -p[1].speedup)[:1]
    return [*(p for p in largest if p[1] is p[0].deployed_waterfall), *written]


def _fall(cell: Cell, found: Waterfall, tones: dict[str, str]) -> Fall:
    steps, at = [], found.ideal
    for f in found.factors:
        steps.append(Step(IN_WORDS[f.name], f.value, at, at / f.value, at / f.high, at / f.low))
        at /= f.value
    tone = tones[cell.arm.strategy] if cell.arm.strategy else "ink"
    return Fall(_who(cell, found), cell.batch_size, found.baseline, tone, found.ideal, found.speedup, steps)


def _who(cell: Cell, found: Waterfall) -> str:
    name = cell.arm.strategy or cell.arm.name
    if found is cell.deployed_waterfall and not (is_written(cell) and cell.arm.engine == "eager"):
        return f"{name} {way_in_words(cell.arm)}, deployed"
    return f"{name}, deployed" if found is cell.deployed_waterfall else f"{name}, as written"


def in_words(d: Fall) -> tuple[str, str]:
    """The caption of a figure, and its content in words."""
    steps = "; ".join(f"{s.name} {times(s.factor)}" for s in d.steps)
    caption = f"{d.who}, batch {d.batch_size}. 1x is {d.baseline}{', in joules' if d.of == 'energy' else ''}."
    return caption, f"From an ideal of {times(d.ideal)} to {times(d.speedup)} of {d.who}: {steps}."


def why_section(views: Sequence[View], title_of: dict[int, str]) -> Section:
    """The section of all views.

    Args:
        views: in order.
        title_of: heading of each, by its number.
    """
    blocks = [block for i, view in enumerate(views) for block in _blocks(view, title_of[i], i)]
    return Section(
        "why",
        "Where the saving goes, by controls",
        "A control is the same arm with a part left out, timed in the same rounds: the ratio of the two is what the "
        "part takes. Answers of controls may be wrong, on purpose; their work is the same.",
        blocks or [Block(text=[WITHOUT_CONTROLS])],
    )


def _blocks(view: View, title: str, number_of_view: int) -> list[Block]:
    found = _found(view)
    if not found:
        return []
    said = [sentence(f"{_who(c, w)}, at batch {c.batch_size},", w) for c, w in _drawn(view)]
    rows = [_row(cell, whole, factor) for cell, whole in found for factor in whole.factors]
    columns = [FACTOR_COLUMNS[0], COLUMNS["batch"], *FACTOR_COLUMNS[1:]]
    table = make_table(f"why {number_of_view} {view.info.name}", "Factors", columns, rows, block="of")
    doubts = [w.text for c, _ in found for w in c.warnings if w.id == "DB-WHY-01"]
    text = [*said, *(f"DB-WHY-01: {text}." for text in dict.fromkeys(doubts))]
    return [Block(title, text=text, table=table), *_joules(view, found, number_of_view)]


def _joules(view: View, found: Sequence[tuple[Cell, Waterfall]], number_of_view: int) -> list[Block]:
    """The same in joules, or why not and what to attach."""
    metered = [(c, w, joules) for c, w in found if (joules := _of_energy(c, w)) is not None]
    if not metered:
        return [Block(text=[f"The same in joules is not there: {_why_no_joules(found)}. {ATTACH}"])]
    drawn = _drawn(view)
    said = [
        sentence(f"{_who(c, w)}, at batch {c.batch_size},", joules, "energy")
        for c, w, joules in metered
        if any(w is shown for _, shown in drawn)
    ]
    rows: list[Row] = [
        {
            "of": Value(_who(c, w), _who(c, w), mark=c.arm.strategy),
            "batch": count(c.batch_size),
            "factor": words(IN_WORDS[f.name]),
            "lost_j": ratio(f.value) if f.name == "surplus" else with_interval(f),
            "by_controls_j": number(None if f.share is None else 100 * f.share, 2),
            "how_j": words(f.how),
        }
        for c, w, joules in metered
        for f in joules.factors
    ]
    columns = [JOULE_COLUMNS[0], COLUMNS["batch"], *JOULE_COLUMNS[1:]]
    table = make_table(f"why joules {number_of_view} {view.info.name}", "Factors of energy", columns, rows, block="of")
    return [Block("In joules", text=said, table=table)]


def _why_no_joules(found: Sequence[tuple[Cell, Waterfall]]) -> str:
    for cell, _ in found:
        if cell.energy is not None and isinstance(cell.energy.item_j, Unavailable):
            return cell.energy.item_j.unavailable
    if all(cell.energy is None for cell, _ in found):
        return "energy was not measured"
    return "the energy of its controls was not measured, or the counter's window held fewer than two passes"


def _row(cell: Cell, whole: Waterfall, factor: Factor) -> Row:
    share, profile = factor.share, factor.profile_share
    exact = factor.name == "surplus"  # counted
    return {
        "of": Value(_who(cell, whole), _who(cell, whole), mark=cell.arm.strategy),
        "batch": count(cell.batch_size),
        "factor": words(IN_WORDS[factor.name]),
        "lost": ratio(factor.value) if exact else with_interval(factor),
        "by_controls": number(None if share is None else 100 * share, 2),
        "by_profile": number(None if profile is None else 100 * profile, 2),
        "how": words(factor.how),
    }
