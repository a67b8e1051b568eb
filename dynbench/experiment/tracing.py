"""One profile of a workload under a strategy: `dynbench trace`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dynbench import devices
from dynbench.dynamic import Execution, points
from dynbench.dynamic.regions import find_regions
from dynbench.errors import UserError, suggestion
from dynbench.experiment.arms import Call, GraphCall, running_arm
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.graphs import session
from dynbench.experiment.plan import planned_cells
from dynbench.experiment.spec import Options, Workload
from dynbench.files import make_folder
from dynbench.graph import Session
from dynbench.meters.timeline import (
    Event,
    Ranges,
    named_regions,
    operator_events,
    read_trace,
    record,
    write_trace,
)
from dynbench.scratch import scratch
from dynbench.store.schema import Arm
from dynbench.strategies import Masking

FILE = "dynbench.pt.trace.json"  # TensorBoard's plugin knows a profile by how the name ends
MOST_EVENTS = 400_000  # about 100 MB, the most that viewers open


@dataclass(frozen=True)
class Traced:
    """A trace that was written.

    Attributes:
        file: for Perfetto, Chrome and TensorBoard's plugin.
        arm: what ran.
        decisions: whose, by label.
        batches: how many, each of `batch_size` items.
        events: of the trace.
    """

    file: Path
    arm: Arm
    decisions: str
    batch_size: int
    batches: int
    events: list[Event]


def trace_workload(spec: Workload, options: Options, out: Path, *, batches: int, graph: bool = False) -> Traced:
    """Profiles a few batches of a workload with every phase, decision point and region named.

    Args:
        spec: the workload.
        options: of a run: one strategy, one engine, one batch size, one source of decisions are taken, the first.
        out: folder of the trace.
        batches: at most so many, from the beginning of the stream.
        graph: the whole network as one ONNX Runtime graph.

    Raises:
        UserError: the strategy is refused, or the trace would be too large.
        DynbenchError: the network cannot be prepared so.
    """
    torch.set_num_threads(options.threads)
    p = prepare(spec, options)
    source = p.sources[0]
    size = p.batch_sizes[0]
    with torch.inference_mode():
        cell = _cell(p, options, size, graph)
        arm = running_arm(p, source, cell, devices.device(options.device))
        stream = p.batches(size)
        for start, x in stream[:1]:
            arm.call(start, x)  # what is made at the first call is not part of it
        make_folder(out)
        file = out / FILE
        few = stream[:batches]
        if isinstance(arm.call, GraphCall):
            with scratch("trace") as folder:
                recorder = source_session(p, source, cell.arm, size, folder)
                events = _of_graph(p, recorder, arm.call, few)
            _check_size(len(events), 1, len(few))
            write_trace(file, events)
        else:
            calls = _calls(p, arm.call, few)
            with named_regions(arm.call.network, _regions(p)):
                with scratch("trace") as folder:
                    once = folder / FILE
                    record(calls[:1], options.device, once)
                    _check_size(len(read_trace(once)), len(few), len(few))
                record(calls, options.device, file)
            events = read_trace(file)
    return Traced(file, cell.arm, source.decisions.label, size, len(few), events)


def source_session(p: Prepared, source: Any, arm: Arm, batch_size: int, folder: Path) -> Session:
    """The session of an arm's graph, which keeps a record of every operator in a folder."""
    proved = session(p, source, arm, batch_size)
    return Session(proved.graph, answers_only=True, threads=p.options.threads, profile=str(folder / "profile"))


def _cell(p: Prepared, options: Options, size: int, graph: bool) -> Any:
    """The planned cell of the strategy that was asked for, or of the first that is not refused."""
    wanted = options.strategies[0] if options.strategies else None
    cells = [c for c in planned_cells(p, p.sources[0], size) if c.arm.kind == "strategy"]
    named = [c for c in cells if wanted is None or c.arm.strategy == wanted]
    if not named:
        known = sorted({c.arm.strategy for c in cells if c.arm.strategy})
        raise UserError(f"{p.spec.name} has no strategy {wanted!r}; {suggestion(str(wanted), known)}")
    planned = [c for c in named if c.status == "planned" and not c.static_twin and not c.item_by_item]
    planned = planned or [c for c in named if c.status == "planned"]
    if not planned:
        raise UserError(f"{named[0].arm.title} on {p.spec.name} at batch {size}: {named[0].reason}")
    best = next((c for c in planned if c.arm.strategy == "compaction"), planned[0]) if wanted is None else planned[0]
    change: dict[str, Any] = {"engine": options.engines[0]}
    if graph:
        change = {"engine": "onnxruntime", "control": "graph"}
    return best.model_copy(update={"arm": best.arm.model_copy(update=change)})


def _calls(p: Prepared, call: Call, few: list[Any]) -> list[Callable[[], Any]]:
    profiled = call.profiled(Ranges())
    return [partial(profiled, start, x) for start, x in few]


def _regions(p: Prepared) -> list[str]:
    few = p.inputs[:1]
    return [region.name for region in find_regions(p.model, lambda net: Execution(Masking()).run(net, few))]


def _of_graph(p: Prepared, run: Session, call: GraphCall, few: list[Any]) -> list[Event]:
    """Each batch once, as ONNX Runtime recorded it, under the names of the network."""
    for start, x in few:
        run.answer(run.feeds(x, call.replay, start))
    written = Path(run.session.end_profiling())
    events = json.loads(written.read_text(encoding="utf-8"))
    written.unlink()
    written.parent.rmdir()
    known = {name: f"region {name}" for name in _regions(p)}
    for name, point in points(p.model).items():
        known.setdefault(name, f"{type(point).__name__} {name}")
    return operator_events(events, known)


def _check_size(events: int, of: int, batches: int) -> None:
    """Refuses what no viewer opens.

    Args:
        events: that were seen.
        of: by how much they become more.
        batches: that were asked for.
    """
    if events * of > MOST_EVENTS:
        fit = max(MOST_EVENTS * batches // (events * of), 0)
        less = f"--batches {fit}" if fit else "a smaller --batch"
        raise UserError(
            f"the trace would have about {events * of:,} events, and viewers open about {MOST_EVENTS:,}: ask for {less}"
        )
