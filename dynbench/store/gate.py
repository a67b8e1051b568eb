"""What a check found: the record, and the forms that CI systems read."""

from __future__ import annotations

import json
from typing import Literal
from xml.etree import ElementTree

from pydantic import Field

from dynbench.store.schema import Interval, Record, Warning_

VERSION = 1
Outcome = Literal["FASTER", "SLOWER", "SAME", "AMBIGUOUS"]


class ExactChange(Record):
    """A quantity that does not depend on the clock and differs between the sides."""

    what: str
    base: float | str
    head: float | str
    regression: bool  # more work, or another answer
    text: str


class CellCheck(Record):
    """One cell: what the clock says, and what does not depend on it."""

    name: str  # 'compaction, batch 32'
    outcome: Outcome
    reason: str
    change: Interval  # head time / base time
    again: Interval  # base time / base time, another process: its truth is 1
    resolution: float
    confirmed: bool  # by a fresh set of processes; only of FASTER and SLOWER
    base_ms: float  # median time of the stream
    head_ms: float
    laps: int  # how often the stream was timed on every side
    processes: int  # sets of processes
    exact: list[ExactChange] = Field(default_factory=list)


class Gate(Record):
    """A check's outcome."""

    version: int = VERSION
    workload: str
    title: str
    base: str  # what was compared with: a revision, or a baseline file
    head: str
    commit: str | None = None  # of the head, in full; None: it is in no repository
    dirty: bool = False  # there were changes that were not committed
    machine: str
    device: str
    threads: int
    started: str
    seconds: float
    matters: float  # smallest change of time that matters, as a share
    cells: list[CellCheck]
    warnings: list[Warning_] = Field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: no regression; 1: a confirmed one; 3: this machine could not tell."""
        if any(c.outcome == "SLOWER" or any(e.regression for e in c.exact) for c in self.cells):
            return 1
        return 3 if any(c.outcome == "AMBIGUOUS" for c in self.cells) else 0

    @property
    def sentence(self) -> str:
        """The outcome in a sentence."""
        slower = [c.name for c in self.cells if c.outcome == "SLOWER"]
        other = [e.text for c in self.cells for e in c.exact if e.regression]
        if slower or other:
            said = [f"slower: {', '.join(slower)}"] if slower else []
            return f"Regression: {'; '.join([*said, *dict.fromkeys(other)])}."
        if unclear := [c.name for c in self.cells if c.outcome == "AMBIGUOUS"]:
            return f"Could not tell: {', '.join(unclear)}."
        faster = [c.name for c in self.cells if c.outcome == "FASTER"]
        return f"No regression{'; faster: ' + ', '.join(faster) if faster else ''}."


def change_text(interval: Interval) -> str:
    """'+9.8 % (+9.1 to +10.6)'."""
    value, low, high = (100 * (v - 1) for v in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} % ({low:+.1f} to {high:+.1f})"


def to_markdown(gate: Gate) -> str:
    """A summary for a pull request."""
    lines = [
        f"### dynbench check: {gate.title}",
        "",
        f"**{gate.sentence}** `{gate.head}` against `{gate.base}`, measured interleaved on {gate.machine} "
        f"({gate.device}, {gate.threads} thread{'s' if gate.threads != 1 else ''}) in {gate.seconds:.0f} s.",
        "",
        "| cell | base ms | head ms | change of time (95 %) | resolution | verdict |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for c in gate.cells:
        verdict = f"**{c.outcome}**{', confirmed' if c.confirmed else ''}"
        lines.append(
            f"| {c.name} | {c.base_ms:.3f} | {c.head_ms:.3f} | {change_text(c.change)} | {100 * c.resolution:.1f} % | "
            f"{verdict} |"
        )
    lines += ["", *(f"- {c.name}: {c.reason}." for c in gate.cells)]
    lines += [f"- {c.name}: {e.text}{'' if e.regression else ' (no regression)'}." for c in gate.cells for e in c.exact]
    if not any(c.exact for c in gate.cells):
        lines.append("- Answers, decisions, FLOPs and operator calls are the same on both sides.")
    lines += [f"- Warning {w.id}: {w.text}; {w.remedy}." for w in gate.warnings]
    lines += [
        "",
        f"Resolution: the base measured against itself in the same laps; nothing nearer to 1 is called a difference. "
        f"SAME: within {100 * gate.matters:g} %. {gate.cells[0].processes if gate.cells else 0} sets of fresh "
        f"processes, {gate.cells[0].laps if gate.cells else 0} laps.",
    ]
    return "\n".join(lines) + "\n"


def to_junit(gate: Gate) -> str:
    """JUnit XML: a test case for each cell's time, and one for each of its exact quantities that changed."""
    suite = ElementTree.Element("testsuite", name=f"dynbench check {gate.workload}", time=f"{gate.seconds:.1f}")
    failures = skipped = tests = 0
    for c in gate.cells:
        case = ElementTree.SubElement(
            suite, "testcase", classname=gate.workload, name=f"time of {c.name}", time=f"{c.head_ms / 1000:.6f}"
        )
        tests += 1
        if c.outcome == "SLOWER":
            failures += 1
            ElementTree.SubElement(case, "failure", message=change_text(c.change)).text = c.reason
        elif c.outcome == "AMBIGUOUS":
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=f"could not tell: {c.reason}")
        for e in c.exact:
            case = ElementTree.SubElement(suite, "testcase", classname=gate.workload, name=f"{e.what} of {c.name}")
            tests += 1
            if e.regression:
                failures += 1
                ElementTree.SubElement(case, "failure", message=e.text).text = e.text
    for key, value in (("tests", tests), ("failures", failures), ("skipped", skipped), ("errors", 0)):
        suite.set(key, str(value))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def to_github_action_benchmark(gate: Gate) -> str:
    """JSON for github-action-benchmark, tool `customSmallerIsBetter`."""
    rows = [
        {
            "name": f"{gate.workload}: {c.name}", "unit": "ms", "value": c.head_ms,
            "range": f"+-{100 * (c.change.high - c.change.low) / 2:.1f} %", "extra": f"{c.outcome}: {c.reason}",
        }
        for c in gate.cells
    ]  # fmt: skip
    return json.dumps(rows, indent=1) + "\n"


def to_bencher(gate: Gate) -> str:
    """Bencher Metric Format, latency in ns; the interval is that of the change, around the head's median."""
    rows = {}
    for c in gate.cells:
        ns = c.head_ms * 1e6
        low, high = (ns * v / c.change.value for v in (c.change.low, c.change.high))
        rows[f"{gate.workload}: {c.name}"] = {"latency": {"value": ns, "lower_value": low, "upper_value": high}}
    return json.dumps(rows, indent=1) + "\n"
