"""Every column a report can have: its header, its unit, what it is, and what it is not. The legend is made of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STAY = ("speedup", "ideal", "efficiency", "warnings", "status", "measured", "accounted_saved", "required_saved",
        "executed_saved")  # fmt: skip
Kind = Literal["name", "number", "text", "prose"]


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
    """

    key: str
    header: str
    unit: str = ""
    definition: str = ""
    is_not: str = ""
    kind: Kind = "number"

    @property
    def stays(self) -> bool:
        """Whether it is shown also where it is the same in every row."""
        return self.kind == "name" or self.key in STAY or self.key.startswith("lost_")


def _c(key: str, header: str, unit: str, definition: str, is_not: str = "", kind: Kind = "number") -> Column:
    return Column(key, header, unit, definition, is_not, kind)


_ALL = [
    _c("name", "what ran", "",
       "A strategy that runs the model, a baseline (a static network measured in the same rounds), or a control.",
       kind="name"),
    _c("role", "role", "",
       "strategy, baseline, primary baseline (the one that speed-up, ideal and efficiency refer to), or control. "
       "A control that runs with live decisions makes its own decisions instead of replaying them, and should take as "
       "long as its strategy.", kind="text"),
    _c("decisions", "decisions", "",
       "Who decides: 'learned' gates, a 'replay' of a recorded trace, 'synthetic' ones made up at a rate, or made up "
       "at a 'published' rate. All arms of a group replay the same decisions.",
       "Synthetic and published decisions say nothing about accuracy.", kind="text"),
    _c("batch", "batch", "items", "Items computed together in one call."),
    _c("keep_rate", "keep-rate", "",
       "Share of the decisions asked that ran the body or stayed in the loop; for experts k / number of experts. "
       "Counted in the trace.",
       "Not the share of computation kept: bodies differ in size, and fixed parts always run."),
    _c("speedup", "speed-up", "x (95 % CI)",
       "Time of the primary baseline / time of this arm, for the whole stream within one round; the median over rounds "
       "with its confidence interval (order statistics). Above 1 is faster.",
       "The interval covers the rounds of this run, not another machine, process or day."),
    _c("resolution", "resolution", "%", "The primary baseline is measured twice in every round; a ratio nearer to 1 "
       "than the two may differ (the far end of their interval, at least 1 % on a CPU and 0.5 % on a GPU) is called no "
       "difference.", "Not the width of this ratio's own interval."),
    _c("ideal", "ideal", "x", "Dense FLOPs / required FLOPs of the bodies and fixed parts: the speed-up if time "
       "followed computation.", "Not a bound: a baseline may use the hardware badly."),
    _c("efficiency", "efficiency", "speed-up / ideal", "Which part of the ideal became time."),
    _c("item_ms", "time", "ms/item", "Median over rounds of the time of the whole stream, device drained, / items.",
       "Not the latency of one item at batch sizes above 1."),
    _c("p50_ms", "p50", "ms/batch", "Median time of one batch over all rounds and batches."),
    _c("p90_ms", "p90", "ms/batch", "The time that 90 % of the batches did not exceed; needs 64 samples.",
       "Closed loop: each batch starts when the one before is done, so there is no queueing in it."),
    _c("p99_ms", "p99", "ms/batch", "As p90, for 99 %; needs 662 samples."),
    _c("device_ms", "device time", "ms/stream", "Time by the device's own events, median over rounds.",
       "Not what a user waits for: it leaves out the host."),
    _c("rounds", "rounds", "", "How often the whole stream was timed, interleaved with the other arms."),
    _c("stopped_by", "stopped by", "", "Why sampling ended: the asked precision was reached, more rounds did not help, "
       "or the time limit.", kind="text"),
    _c("warnings", "warnings", "", "Ids of doubts about this result, explained under Warnings.", kind="text"),
    _c("executed", "executed", "MFLOP/item", "FLOPs the arm really ran, gates included, counted operator by operator. "
       "1 MAC = 2 FLOPs.", "Not FLOP/s, and not what the decisions asked for."),
    _c("bytes", "bytes touched", "MB/item", "Tensor bytes read and written by operators.",
       "An upper bound on memory traffic: caches are not seen."),
    _c("operator_calls", "operator calls", "per stream", "Calls of tensor operators: what the host has to issue."),
    _c("host_syncs", "host waits", "per stream", "Times the host waited for the device."),
    _c("launches", "launches", "per stream", "Kernels launched on the device."),
    _c("peak_mb", "peak memory", "MB", "Highest memory in use during a call, 1 MB = 10^6 bytes."),
    _c("energy_mj", "energy", "mJ/item", "From the device's energy counter over a window long enough for it.",
       "Never an estimate, and not the energy of the whole machine."),
    _c("idle_share", "idle share", "% of energy", "What the device would have used in the same time doing nothing."),
    _c("params", "parameters", "M", "Parameters of the network, all experts and all levels counted."),
    _c("error", "error", "relative", "Largest difference of the answer from per_sample in float64 with the same "
       "decisions, / the largest value of the answer.", "Not a difference in accuracy."),
    _c("tolerance", "tolerance", "relative", "The error up to which the answer counts as the same."),
    _c("lost_surplus", "surplus", "x lost", "Loss by FLOPs executed that no decision asked for."),
    _c("lost_decisions", "decisions", "x lost", "Loss by gates and heads."),
    _c("lost_movement", "movement", "x lost", "Loss by gather and scatter."),
    _c("lost_waiting", "waiting", "x lost", "Loss by waiting for decisions on the host."),
    _c("lost_utilisation", "rest", "x lost", "What is left of ideal / speed-up: smaller calls run "
       "slower per FLOP, launches, and the error of the profile. Below 1: the arm uses the hardware better than the "
       "baseline.", "A remainder, not a measurement."),
    _c("causes", "in words", "", "The losses above 2 %, largest first.", kind="prose"),
    _c("body", "bodies", "% of time", "Share of one profiled pass inside bodies."),
    _c("gates", "gates, heads", "% of time", "Share of the profiled pass that decides and answers."),
    _c("moves", "gather, scatter", "% of time", "Share of the profiled pass that moves items."),
    _c("waits", "waits", "% of time", "Share of the profiled pass that waits for decisions."),
    _c("other", "other", "% of time", "The fixed parts of the model, and the host.",
       "Profiling itself adds time: shares are not of the times above."),
    _c("kind_of_flops", "FLOPs", "", "dense: of the primary baseline. required: reached, active bodies and fixed "
       "parts, shared work once; with gates: the same plus gates, heads and policies. executed: what an arm ran. "
       "accounted: what the paper counts.", kind="name"),
    _c("mflop", "amount", "MFLOP/item", "Mean over the stream, 1 MAC = 2 FLOPs."),
    _c("of_dense", "of dense", "%", "Divided by the dense FLOPs."),
    _c("cost", "computation", "MFLOP/item", "Of the dynamic network what its decisions require, gates included; of a "
       "static one what it executes."),
    _c("network", "network", "", "The dynamic network with its own learned decisions, or a baseline.", kind="name"),
    _c("place", "place in the comparison", "", "A static network is called of equal mean FLOPs when it is the nearest "
       "one and within 20 % of what the decisions require.", kind="text"),
    _c("metric", "metric", "", "On held-out labelled inputs.", kind="text"),
    _c("accuracy", "result", "", "Of the metric beside it; percentages are shares of right answers."),
    _c("labelled", "inputs", "items", "Held-out inputs it was measured on."),
    _c("asked", "who is asked", "", "Somebody or something outside the machine.", kind="name"),
    _c("share", "reached by", "% of items", "Share of the stream's items handed on to it, counted in the trace."),
    _c("query_s", "declared time", "s/query", "As the workload file declares it.", "Not measured."),
    _c("query_cost", "declared cost", "per query", "As the workload file declares it.", "Not measured."),
    _c("expected_s", "expected", "s/item", "Declared time x the share that reaches it.", "Not measured."),
    _c("expected_cost", "expected cost", "per item", "Declared cost x the share that reaches it.", "Not measured."),
    _c("machine_ms", "machine", "ms/item", "Measured time of all the rest, under the fastest strategy at the largest "
       "batch size."),
    _c("claim", "the paper says", "", "A published figure. One from memory or another's text is marked.", kind="prose"),
    _c("where", "where it says so", "", "", kind="prose"),
    _c("how", "how obtained", "", "counted (operations), predicted (by a model of time) or timed.", kind="text"),
    _c("status", "status", "", "verified: read in the source named. second-hand: read in another text. recalled: from "
       "memory, not checked. reconstructed: worked out from other figures.", kind="text"),
    _c("accounted_saved", "accounted", "% of dense", "FLOPs as the paper counts them / dense FLOPs."),
    _c("required_saved", "required", "% of dense", "Required FLOPs with gates / dense FLOPs."),
    _c("executed_saved", "executed", "% of dense", "FLOPs run by the fastest strategy / dense FLOPs."),
    _c("measured", "measured", "x (95 % CI)", "Speed-up of the fastest strategy at the largest batch size.",
       "Measured here, on these inputs; a claim may be about other data and hardware."),
    _c("workload", "workload", "", "", kind="name"),
    _c("batches", "batch sizes", "items", "", kind="text"),
    _c("outcome", "outcome", "", "refused: it would mean nothing for this model, or tell nothing new. failed: it was "
       "tried. interrupted: the run ended first.", kind="text"),
    _c("reason", "reason", "", "", kind="prose"),
    _c("id", "id", "", "", kind="name"),
    _c("concerns", "concerns", "", "", kind="prose"),
    _c("warning", "warning", "", "", kind="prose"),
    _c("remedy", "remedy", "", "", kind="prose"),
    _c("what", "what", "", "", kind="name"),
    _c("why", "why", "", "", kind="prose"),
    _c("fact", "fact", "", "", kind="name"),
    _c("value", "value", "", "", kind="prose"),
]  # fmt: skip

COLUMNS = {c.key: c for c in _ALL}


def against(baseline: str) -> Column:
    """The column of speed-ups against a baseline that is not the primary one."""
    return Column(f"against:{baseline}", f"against {baseline}", "x (95 % CI)", "Speed-up against this baseline.")
