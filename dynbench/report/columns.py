"""The columns of a report: its header, its unit, what it is, and what it is not. The legend is made of these.

The columns of quantities follow from `store.quantities`; the others (names, reasons, what the analysis derives) are
listed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynbench.store.quantities import QUANTITIES
from dynbench.store.quantity import Quantity

Kind = Literal["name", "number", "text", "prose"]
STAYING = (
    "deployed_speedup",
    "speedup",
    "ideal_speedup",
    "efficiency_speedup_over_ideal",
)  # quantities whose column stays


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: of the values in a row.
        header: above it.
        unit: shown under the header; '' for words and pure numbers.
        definition: for the legend; '' keeps it out of there.
        is_not: what a reader might take it for.
        kind: how it is set: 'name' heads its row, 'text' does not wrap, 'prose' does, 'number' stands to the right.
        stays: it is shown also where it is the same in every row.
    """

    key: str
    header: str
    unit: str = ""
    definition: str = ""
    is_not: str = ""
    kind: Kind = "number"
    stays: bool = False


def column(quantity: Quantity) -> Column:
    """The column of a quantity."""
    return Column(
        key=quantity.key,
        header=quantity.header,
        unit=quantity.unit,
        definition=quantity.definition,
        is_not=quantity.is_not,
        stays=quantity.key in STAYING,
    )


def against(baseline: str) -> Column:
    """The column of speed-ups against a baseline that is not the primary one."""
    return Column(f"against:{baseline}", f"against {baseline}", "x (95 % CI)", "Speed-up against this baseline.")


def deployed_against(baseline: str) -> Column:
    """The column of deployed speed-ups against a baseline that is not the primary one."""
    header, definition = f"deployed against {baseline}", "Deployed speed-up against this baseline in its fastest way."
    return Column(f"deployed against:{baseline}", header, "x (95 % CI)", definition)


_OTHERS = [
    Column(
        key="use",
        header="use",
        definition="The dynamic network, or a static one by its name.",
        kind="text",
        stays=True,
    ),
    Column(
        key="strategy",
        header="strategy",
        definition="How decided work is executed; a static network has none.",
        kind="text",
        stays=True,
    ),
    Column(
        key="form",
        header="form",
        definition="How the network is written down: plain, folded (batch norm is part of the weights before it), "
        "channels last in memory.",
        kind="text",
        stays=True,
    ),
    Column(
        key="engine",
        header="engine",
        definition="What computes the layers.",
        kind="text",
        stays=True,
    ),
    Column(
        key="control",
        header="control",
        definition="Who executes decisions: the 'host' (Python, part by part), or the 'graph', which is called once "
        "per batch and holds the whole network.",
        kind="text",
        stays=True,
    ),
    Column(
        key="decides",
        header="who decides",
        definition="'itself': the network's own gates decide as it runs. A dash: nothing is decided, or the decisions "
        "of the group are replayed.",
        kind="text",
        stays=True,
    ),
    Column(
        key="over_fastest",
        header="time",
        unit="of the fastest",
        definition="In the tournament: time of a few batches / the same in the network's fastest way.",
        is_not="A short measurement, only to choose the way; the group measures the chosen one again.",
        stays=True,
    ),
    Column(
        key="device",
        header="device",
        kind="text",
    ),
    Column(
        key="threads",
        header="threads",
        kind="text",
    ),
    Column(
        key="name",
        header="what ran",
        definition="A strategy that runs the model, a baseline (a static network measured in the same rounds), or a "
        "control.",
        kind="name",
    ),
    Column(
        key="role",
        header="role",
        definition="strategy, baseline, primary baseline (the one that speed-up, ideal and efficiency refer to), or "
        "control. A control that runs with live decisions makes its own decisions instead of replaying them, and "
        "should take as long as its strategy.",
        kind="text",
    ),
    Column(
        key="decisions",
        header="decisions",
        definition="Who decides: 'learned' gates, a 'replay' of a recorded trace, 'synthetic' ones made up at a rate, "
        "or made up at a 'published' rate. All arms of a group replay the same decisions.",
        is_not="Synthetic and published decisions say nothing about accuracy.",
        kind="text",
    ),
    Column(
        key="batch",
        header="batch",
        unit="items",
        definition="Items computed together in one call.",
    ),
    Column(
        key="stopped_by",
        header="stopped by",
        definition="Why sampling ended: the asked precision was reached, more rounds did not help, or the time limit.",
        kind="text",
    ),
    Column(
        key="warnings",
        header="warnings",
        definition="Ids of doubts about this result, explained under Warnings.",
        kind="text",
        stays=True,
    ),
    Column(
        key="lost_surplus",
        header="surplus",
        unit="x lost",
        definition="Loss by FLOPs executed that no decision asked for.",
        stays=True,
    ),
    Column(
        key="lost_decisions",
        header="decisions",
        unit="x lost",
        definition="Loss by gates and heads.",
        stays=True,
    ),
    Column(
        key="lost_movement",
        header="movement",
        unit="x lost",
        definition="Loss by gather and scatter.",
        stays=True,
    ),
    Column(
        key="lost_waiting",
        header="waiting",
        unit="x lost",
        definition="Loss by waiting for decisions on the host.",
        stays=True,
    ),
    Column(
        key="lost_utilisation",
        header="rest",
        unit="x lost",
        definition="What is left of ideal / speed-up: smaller calls run slower per FLOP, launches, and the error of "
        "the profile. Below 1: the arm uses the hardware better than the baseline.",
        is_not="A remainder, not a measurement.",
        stays=True,
    ),
    Column(
        key="causes",
        header="in words",
        definition="The losses above 2 %, largest first.",
        kind="prose",
    ),
    Column(
        key="body",
        header="bodies",
        unit="% of time",
        definition="Share of one profiled pass inside bodies.",
    ),
    Column(
        key="gates",
        header="gates, heads",
        unit="% of time",
        definition="Share of the profiled pass that decides and answers.",
    ),
    Column(
        key="moves",
        header="gather, scatter",
        unit="% of time",
        definition="Share of the profiled pass that moves items.",
    ),
    Column(
        key="waits",
        header="waits",
        unit="% of time",
        definition="Share of the profiled pass that waits for decisions.",
    ),
    Column(
        key="other",
        header="other",
        unit="% of time",
        definition="The fixed parts of the model, and the host.",
        is_not="Profiling itself adds time: shares are not of the times above.",
    ),
    Column(
        key="kind_of_flops",
        header="FLOPs",
        definition="dense: of the primary baseline. required: reached, active bodies and fixed parts, shared work "
        "once; with gates: the same plus gates, heads and policies. executed: what an arm ran. accounted: what the "
        "paper counts.",
        kind="name",
    ),
    Column(
        key="mflop",
        header="amount",
        unit="MFLOP/item",
        definition="Mean over the stream, 1 MAC = 2 FLOPs.",
    ),
    Column(
        key="of_dense",
        header="of dense",
        unit="%",
        definition="Divided by the dense FLOPs.",
    ),
    Column(
        key="cost",
        header="computation",
        unit="MFLOP/item",
        definition="Of the dynamic network what its decisions require, gates included; of a static one what it "
        "executes.",
    ),
    Column(
        key="network",
        header="network",
        definition="The dynamic network with its own learned decisions, or a baseline.",
        kind="name",
    ),
    Column(
        key="place",
        header="place in the comparison",
        definition="A static network is called of equal mean FLOPs when it is the nearest one and within 20 % of what "
        "the decisions require.",
        kind="text",
    ),
    Column(
        key="metric",
        header="metric",
        definition="On held-out labelled inputs.",
        kind="text",
    ),
    Column(
        key="accuracy",
        header="result",
        definition="Of the metric beside it, in its unit.",
    ),
    Column(
        key="labelled",
        header="inputs",
        unit="items",
        definition="Held-out inputs it was measured on.",
    ),
    Column(
        key="asked",
        header="who is asked",
        definition="Somebody or something outside the machine.",
        kind="name",
    ),
    Column(
        key="share",
        header="reached by",
        unit="% of items",
        definition="Share of the stream's items handed on to it, counted in the trace.",
    ),
    Column(
        key="query_s",
        header="declared time",
        unit="s/query",
        definition="As the workload file declares it.",
        is_not="Not measured.",
    ),
    Column(
        key="query_cost",
        header="declared cost",
        unit="per query",
        definition="As the workload file declares it.",
        is_not="Not measured.",
    ),
    Column(
        key="expected_s",
        header="expected",
        unit="s/item",
        definition="Declared time x the share that reaches it.",
        is_not="Not measured.",
    ),
    Column(
        key="expected_cost",
        header="expected cost",
        unit="per item",
        definition="Declared cost x the share that reaches it.",
        is_not="Not measured.",
    ),
    Column(
        key="machine_ms",
        header="machine",
        unit="ms/item",
        definition="Measured time of all the rest, under the fastest strategy at the largest batch size.",
    ),
    Column(
        key="claim",
        header="the paper says",
        definition="A published figure. One from memory or another's text is marked.",
        kind="prose",
    ),
    Column(
        key="where",
        header="where it says so",
        kind="prose",
    ),
    Column(
        key="how",
        header="how obtained",
        definition="counted (operations), predicted (by a model of time) or timed.",
        kind="text",
    ),
    Column(
        key="status",
        header="status",
        definition="verified: read in the source named. second-hand: read in another text. recalled: from memory, not "
        "checked. reconstructed: worked out from other figures.",
        kind="text",
        stays=True,
    ),
    Column(
        key="accounted_saved",
        header="accounted",
        unit="% of dense",
        definition="FLOPs as the paper counts them / dense FLOPs.",
        stays=True,
    ),
    Column(
        key="required_saved",
        header="required",
        unit="% of dense",
        definition="Required FLOPs with gates / dense FLOPs.",
        stays=True,
    ),
    Column(
        key="executed_saved",
        header="executed",
        unit="% of dense",
        definition="FLOPs run by the fastest strategy / dense FLOPs.",
        stays=True,
    ),
    Column(
        key="measured",
        header="measured",
        unit="x (95 % CI)",
        definition="Speed-up of the fastest strategy at the largest batch size; deployed against deployed where ways "
        "were tried.",
        is_not="Measured here, on these inputs; a claim may be about other data and hardware.",
        stays=True,
    ),
    Column(
        key="workload",
        header="workload",
        kind="name",
    ),
    Column(
        key="batches",
        header="batch sizes",
        unit="items",
        kind="text",
    ),
    Column(
        key="outcome",
        header="outcome",
        definition="refused: it would mean nothing for this model, or tell nothing new. failed: it was tried. "
        "interrupted: the run ended first.",
        kind="text",
    ),
    Column(
        key="reason",
        header="reason",
        kind="prose",
    ),
    Column(
        key="id",
        header="id",
        kind="name",
    ),
    Column(
        key="concerns",
        header="concerns",
        kind="prose",
    ),
    Column(
        key="warning",
        header="warning",
        kind="prose",
    ),
    Column(
        key="remedy",
        header="remedy",
        kind="prose",
    ),
    Column(
        key="what",
        header="what",
        kind="name",
    ),
    Column(
        key="why",
        header="why",
        kind="prose",
    ),
    Column(
        key="fact",
        header="fact",
        kind="name",
    ),
    Column(
        key="value",
        header="value",
        kind="prose",
    ),
]

COLUMNS = {c.key: c for c in (*map(column, QUANTITIES), *_OTHERS)}
