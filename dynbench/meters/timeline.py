"""One profile of a call with everything named: phases, decision points, regions, operators."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from dynbench.files import write_aside, write_text
from dynbench.scratch import scratch

Event = dict[str, Any]  # of a Chrome trace

MARKS, OPERATORS = "user_annotation", "cpu_op"  # categories of events: named ranges, and operators


class Ranges:
    """A profile for an execution that makes each phase a named range: 'decide skips.3', 'body experts[2]'."""

    def __init__(self) -> None:
        self._open: list[record_function] = []

    def enter(self, phase: str, point: str | None, index: int | None) -> None:
        """A phase begins."""
        name = phase if point is None else f"{phase} {point}"
        mark = record_function(name if index is None else f"{name}[{index}]")
        mark.__enter__()
        self._open.append(mark)

    def exit(self) -> None:
        """The phase entered last ends."""
        self._open.pop().__exit__(None, None, None)


@contextmanager
def named_regions(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While it lasts, each call of a region is a named range.

    Args:
        network: that is called.
        names: of modules in it; others are passed over, as an engine may have replaced them.
    """
    modules = dict(network.named_modules())
    hooks = []
    for name in names:
        if name in modules:
            hooks += _marked(modules[name], f"region {name or '(whole network)'}")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _marked(module: nn.Module, name: str) -> list[Any]:
    """Hooks that begin and end a range; calls may nest."""
    marks: list[record_function] = []

    def begin(*_: object) -> None:
        marks.append(record_function(name))
        marks[-1].__enter__()

    def end(*_: object) -> None:
        marks.pop().__exit__(None, None, None)

    before = nn.Module.register_forward_pre_hook(module, begin, prepend=True)
    return [before, nn.Module.register_forward_hook(module, end, always_call=True)]


def record(batches: Sequence[Callable[[], Any]], device: str, file: Path) -> None:
    """Calls each batch once as a step of torch's profiler, and writes the trace.

    Args:
        batches: calls.
        device: 'cpu' or 'cuda:N'.
        file: to be written, in Chrome's format; what TensorBoard's plugin reads is called '*.pt.trace.json'.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
    found = profile(activities=activities)
    with _without_chatter():
        found.start()
    try:
        for number, batch in enumerate(batches):
            with record_function(f"ProfilerStep#{number}"):  # as TensorBoard's plugin calls a step
                batch()
    finally:
        with _without_chatter():
            found.stop()
    with scratch("trace") as folder:  # torch opens a file by its name, and would follow a link that is there
        found.export_chrome_trace(str(folder / file.name))
        with (folder / file.name).open("rb") as whole, write_aside(file) as copy:
            shutil.copyfileobj(whole, copy)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """While it lasts, nothing reaches standard error: torch's profiler writes lines there when it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def operator_events(events: Sequence[Event], regions: Mapping[str, str]) -> list[Event]:
    """ONNX Runtime's own record as events of a Chrome trace, under the names of the network.

    Nodes are named after the modules that they come from, so each gets the ranges of its point or region around it:
    neighbours of one module share one.

    Args:
        events: of a session's profile.
        regions: name of the range, by name of the module.
    """
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    found: list[Event] = []
    ranges: list[Event] = []
    for event in sorted(nodes, key=lambda e: (e["ts"], -e["dur"])):
        module = event["name"].removesuffix("_kernel_time").strip("/").rpartition("/")[0].replace("/", ".")
        where = _around(module, regions)
        base = {"ph": "X", "pid": event.get("pid", 0), "tid": event["tid"], "ts": event["ts"], "dur": event["dur"]}
        found.append({**base, "cat": OPERATORS, "name": event["args"]["op_name"], "args": {"node": event["name"]}})
        last = ranges[-1] if ranges else None
        end = event["ts"] + event["dur"]
        if last is not None and last["name"] == where and event["ts"] >= last["ts"]:
            last["dur"] = max(last["dur"], end - last["ts"])
        else:
            ranges.append({**base, "cat": MARKS, "name": where})
    return [*_inside_their_branches(ranges, found), *found]


def _around(module: str, regions: Mapping[str, str]) -> str:
    """The range of the innermost known module around one; '(network)' where there is none."""
    parts = module.split(".") if module else []
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((regions[name] for name in names if name in regions), "(network)")


def _inside_their_branches(ranges: list[Event], operators: list[Event]) -> list[Event]:
    """Ranges cut where a branch ends that they began in: what is nested must end with what is around it."""
    branches = [(e["ts"], e["ts"] + e["dur"]) for e in operators if e["name"] == "If"]
    kept = []
    for mark in ranges:
        begin, end = mark["ts"], mark["ts"] + mark["dur"]
        ends = [stop for start, stop in branches if start < begin < stop < end]
        kept.append({**mark, "dur": min([end, *ends]) - begin})
    return kept


def write_trace(file: Path, events: Sequence[Event]) -> None:
    """Events as a file that Perfetto, Chrome and TensorBoard's plugin read."""
    table = {"schemaVersion": 1, "deviceProperties": [], "traceEvents": list(events), "displayTimeUnit": "ms"}
    write_text(file, json.dumps(table))


def read_trace(file: Path) -> list[Event]:
    """The events of a trace."""
    events: list[Event] = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return events
