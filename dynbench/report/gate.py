"""What a check found, in the forms that people and CI systems read."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from dynbench.analysis.formatting import change_with_interval, percent
from dynbench.escape import markdown, markdown_code, xml
from dynbench.store.gate import CellCheck, Gate


def to_markdown(gate: Gate) -> str:
    """A summary for a pull request."""
    threads = f"{gate.threads} thread{'s' if gate.threads != 1 else ''}"
    exact = [(c, e) for c in gate.cells for e in c.exact]
    first = next(iter(gate.cells), None)
    processes, laps = (0, 0) if first is None else (first.processes, first.laps)
    lines = [
        f"### dynbench check: {markdown(gate.title)}",
        "",
        f"**{markdown(gate.sentence)}** {markdown_code(gate.head)} against {markdown_code(gate.base)}, measured "
        f"interleaved on {markdown(gate.machine)} ({markdown(gate.device)}, {threads}) in {gate.seconds:.0f} s.",
        "",
        "| cell | base ms | head ms | change of time (95 %) | resolution | verdict |",
        "|---|--:|--:|--:|--:|---|",
        *(_row(c) for c in gate.cells),
        "",
        *(f"- {markdown(c.name)}: {markdown(c.reason)}." for c in gate.cells),
        *(f"- {markdown(c.name)}: {markdown(e.text)}{'' if e.regression else ' (no regression)'}." for c, e in exact),
    ]
    if not exact:
        lines.append("- Answers, decisions, FLOPs and operator calls are the same on both sides.")
    lines += [f"- Warning {w.id}: {markdown(w.text)}; {markdown(w.remedy)}." for w in gate.warnings]
    lines += [f"- Note: {markdown(note)}." for note in gate.notes]
    lines += [
        "",
        "Resolution: the base measured against itself in the same laps; nothing nearer to 1 is called a difference. "
        f"SAME: within {100 * gate.matters:g} %. {processes} sets of fresh processes, {laps} laps.",
    ]
    return "\n".join(lines) + "\n"


def _row(cell: CellCheck) -> str:
    columns = [
        markdown(cell.name),
        f"{cell.base_ms:.3f}",
        f"{cell.head_ms:.3f}",
        change_with_interval(cell.change),
        percent(cell.resolution, 1),
        f"**{cell.outcome}**{', confirmed' if cell.confirmed else ''}",
    ]
    return f"| {' | '.join(columns)} |"


def to_junit(gate: Gate) -> str:
    """JUnit XML: a test case for each cell's time, and one for each of its exact quantities that changed."""
    suite = _element(None, "testsuite", name=f"dynbench check {gate.workload}", time=f"{gate.seconds:.1f}")

    def case(name: str, **attributes: str) -> ElementTree.Element:
        return _element(suite, "testcase", classname=gate.workload, name=name, **attributes)

    def failure(where: ElementTree.Element, message: str, text: str) -> None:
        _element(where, "failure", message=message).text = xml(text)

    for c in gate.cells:
        timed = case(f"time of {c.name}", time=f"{c.head_ms / 1000:.6f}")
        if c.outcome == "SLOWER":
            failure(timed, change_with_interval(c.change), c.reason)
        elif c.outcome == "AMBIGUOUS":
            _element(timed, "skipped", message=f"could not tell: {c.reason}")
        for e in c.exact:
            changed = case(f"{e.what} of {c.name}")
            if e.regression:
                failure(changed, e.text, e.text)
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("errors", "0")
    if gate.notes or gate.warnings:
        said = [*gate.notes, *(f"{w.id}: {w.text}; {w.remedy}" for w in gate.warnings)]
        _element(suite, "system-out").text = xml("\n".join(said))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True).decode() + "\n"


def _element(parent: ElementTree.Element | None, tag: str, **attributes: str) -> ElementTree.Element:
    escaped = {name: xml(value) for name, value in attributes.items()}
    return ElementTree.Element(tag, escaped) if parent is None else ElementTree.SubElement(parent, tag, escaped)


def to_github_action_benchmark(gate: Gate) -> str:
    """JSON for github-action-benchmark, tool `customSmallerIsBetter`."""
    rows = [
        {
            "name": f"{gate.workload}: {c.name}",
            "unit": "ms",
            "value": c.head_ms,
            "range": f"+-{percent((c.change.high - c.change.low) / 2, 1)}",
            "extra": f"{c.outcome}: {c.reason}",
        }
        for c in gate.cells
    ]
    return json.dumps(rows, indent=1) + "\n"


def to_bencher(gate: Gate) -> str:
    """Bencher Metric Format, latency in ns; the interval is that of the change, around the head's median."""
    rows = {}
    for c in gate.cells:
        ns = c.head_ms * 1e6
        low, high = (ns * end / c.change.value for end in (c.change.low, c.change.high))
        rows[f"{gate.workload}: {c.name}"] = {"latency": {"value": ns, "lower_value": low, "upper_value": high}}
    return json.dumps(rows, indent=1) + "\n"
