"""A process of one revision: prepares a workload from its own source tree and runs it call by call.

It is forked from a process that has imported torch and dynbench, with the revision's tree first on the path and the
thread environment set; the workload is prepared after the fork. It waits while nothing is asked of it. Changes of the
messages raise `dynbench.gate.protocol.PROTOCOL`.
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from dynbench import devices
from dynbench.counting.flops import FlopCounter
from dynbench.data import Dataset
from dynbench.dynamic import Execution, Trace
from dynbench.dynamic.items import tensors
from dynbench.experiment.arms import Call, RunningArm
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.spec import Options, load_spec
from dynbench.files import write_aside
from dynbench.gate.cells import GateCell
from dynbench.gate.exact import run_twice
from dynbench.gate.protocol import PROTOCOL
from dynbench.launch.channel import Channel
from dynbench.meters.latency import time_batches
from dynbench.meters.required import PartCosts
from dynbench.meters.syncs import count_syncs
from dynbench.store.quantities import QUANTITIES
from dynbench.store.quantity import Quantity, evaluate
from dynbench.store.schema import Arm, Cell, Decisions, Flops
from dynbench.strategies import PREFERRED, Strategy
from dynbench.unavailable import Measured, Unavailable

SHOWN = 5  # points in a sentence
NOT_COUNTED = Unavailable(unavailable="not counted by a check")


def serve(channel: Channel) -> None:
    """Answers requests until the channel is closed: `{"do": "prepare", ...}`, a method's name and its arguments."""
    torch.set_grad_enabled(False)
    worker = RevisionWorker()
    methods: dict[str, Callable[..., dict[str, Any]]] = {
        "prepare": worker.prepare,
        "call": worker.call,
        "exact": worker.exact,
    }
    blocks = scattered_blocks()
    channel.send({"protocol": PROTOCOL})
    for request in channel:
        try:
            answer = methods[request.pop("do")](**request)
        except Exception as e:  # noqa: BLE001 (a user's model may raise anything)
            traceback.print_exc()
            answer = {"error": " ".join(f"{e}".split()) or type(e).__name__, "kind": type(e).__name__}
        channel.send(answer)
    del blocks


def scattered_blocks() -> list[Tensor]:
    """Blocks of random sizes; while they are kept, memory that is allocated later lies elsewhere in every process.

    Processes of one fork server have its address space: without this, the distances between their buffers would be the
    same in all of them and different in those of the other revision, which no number of processes averages out. (Two
    revisions with the same code once differed by 4 % on a small network; part of it may have been what glibc did with
    memory, which `revisions.MALLOC_SETTINGS` ended later.)
    """
    chance = random.Random(time.time_ns() ^ os.getpid())
    blocks = [torch.empty(64 * chance.randrange(1, 2048), dtype=torch.uint8) for _ in range(400)]
    return [block for block in blocks if chance.random() < 0.5]


class RevisionWorker:
    """A workload of one source tree, ready to be called."""

    def prepare(
        self,
        file: str,
        options: dict[str, Any],
        tree: str,
        names: list[str],
        static: bool,
        stream_file: str,
        cores: list[int] | None = None,
    ) -> dict[str, Any]:
        """Builds the workload.

        Args:
            file: the workload file, in the tree.
            options: of the run.
            tree: where all first-party code must come from.
            names: top-level names of first-party packages and modules.
            static: call the primary baseline in place of every strategy.
            stream_file: where the first process leaves the stream for the others, because making it takes long.
            cores: where all its threads stay from now on; None: anywhere.

        Returns:
            `cells` (as `GateCell`), `stream_hash`, and `foreign`: first-party modules that lie outside the tree.

        Raises:
            UserError: the workload cannot be prepared.
            ValueError: a strategy that was asked for refuses the model.
        """
        chosen = Options.model_validate(options)
        torch.set_num_threads(chosen.threads)
        kept = Path(stream_file)
        self._prepared = prepared = prepare(load_spec(file), chosen, _load_stream(kept))
        if not kept.exists():
            _save_stream(kept, prepared.dataset)
        self._arms = [
            _arm(prepared, kind, batch_size, static)
            for kind in _strategies(prepared, chosen)
            for batch_size in prepared.batch_sizes
        ]
        if cores is not None:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), cores)
        cells = [
            GateCell(arm=a.arm, batch_size=a.cell.batch_size, batches=len(a.batches)).model_dump(mode="json")
            for a in self._arms
        ]
        return {"cells": cells, "stream_hash": prepared.stream_hash, "foreign": foreign_modules(tree, names)}

    def call(self, cell: int, first: int, count: int, warm: bool) -> dict[str, int]:
        """Times up to `count` batches from `first` on.

        Args:
            cell: index of the cell.
            first: index of the first batch.
            count: of batches.
            warm: run the first of them once before, untimed: another process has used the caches meanwhile.

        Returns:
            `ns`: their time, the device drained before and after each.
        """
        arm = self._arms[cell]
        batches = arm.batches[first : first + count]
        with torch.inference_mode():
            if warm:
                arm.call(*batches[0])
            return {"ns": sum(timing.duration_ns for timing in time_batches(arm.call, batches, arm.device))}

    def exact(self, cell: int, answers_to: str) -> dict[str, Any]:
        """What does not depend on the clock.

        Args:
            cell: index of the cell.
            answers_to: file for the answers.

        Returns:
            `facts`: totals over the stream by the name of the quantity, and `decisions`: a hash of them. `random`: what
            differs where the stream is run again, 'decisions' or 'answers', and how.

        Raises:
            ValueError: there is no tensor in the answers.
        """
        arm = self._arms[cell]
        counter = FlopCounter()
        with torch.inference_mode():
            with counter:
                given, trace = _recorded(arm, Execution(arm.strategy, record=True, profile=counter))
            answers = _arrays(given)  # copied, before they are overwritten
            given, again = _recorded(arm, Execution(arm.strategy, record=True))
            repeated = _arrays(given)
            counted = _counted(arm, counter, trace)
        if not answers:
            raise ValueError("what the network answers holds no tensor, so nothing can be compared")
        save_file(answers, answers_to)
        random = run_twice((trace.hash(), again.hash()), (answers, repeated))
        if "decisions" in random:
            random["decisions"] = f"at {_points_that_differ(trace, again)}"
        own = self._prepared.parts.quantities
        return {"facts": {**_exact_work(counted, arm, own), "decisions": trace.hash()}, "random": random}


def _recorded(arm: RunningArm, recording: Execution) -> tuple[list[Any], Trace]:
    """The answers to all batches of the stream, and the decisions."""
    call = Call(arm.as_written, recording, arm.items)
    answers = [call(start, x) for start, x in arm.batches]
    assert recording.trace is not None
    return answers, recording.trace


def _arrays(answers: list[Any]) -> dict[str, np.ndarray]:
    """Copies of the tensors in the answers, by batch and number."""
    return {f"{i}.{j}": _array(t) for i, answer in enumerate(answers) for j, t in enumerate(tensors(answer))}


def _array(t: Tensor) -> np.ndarray:
    """A copy of a tensor, in a type that numpy has."""
    t = t.detach().cpu()
    if t.is_quantized:
        t = t.dequantize()
    t = t.to_dense().resolve_conj().resolve_neg()
    if t.is_complex():
        t = torch.view_as_real(t)
    if t.is_floating_point() and t.dtype not in (torch.float16, torch.float32, torch.float64):
        t = t.float()
    return np.array(t.numpy(), order="C")


def _points_that_differ(one: Trace, other: Trace) -> str:
    """The names of the first points that do not decide the same in both."""
    hashes = [{key[0]: Trace({key: entry}).hash() for key, entry in trace.entries.items()} for trace in (one, other)]
    differ = [name for name in {**hashes[0], **hashes[1]} if hashes[0].get(name) != hashes[1].get(name)]
    more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
    return ", ".join(differ[:SHOWN]) + more


def _strategies(prepared: Prepared, options: Options) -> list[type[Strategy]]:
    """Those that were asked for; else the first of the preferred ones that the model does not refuse.

    Raises:
        ValueError: the model refuses one that was asked for.
    """
    if options.strategies is None:
        return [next(kind for kind in PREFERRED if kind().refuses(prepared.model) is None)]
    asked = list(prepared.parts.strategies.values())
    for kind in asked:
        if why := kind().refuses(prepared.model):
            raise ValueError(f"{kind.name}: {why}")
    return asked


def _arm(prepared: Prepared, kind: type[Strategy], batch_size: int, static: bool) -> RunningArm:
    """A strategy that makes the network's own decisions; `static`: the primary baseline in its place."""
    options, (engine, *_) = prepared.options, prepared.parts.engines
    arm = Arm(kind="strategy", strategy=kind.name, engine=engine)
    runs = Arm(kind="baseline", baseline=prepared.spec.primary.name, engine=engine) if static else arm
    strategy = prepared.strategy(None) if static else kind()
    cell = Cell(
        cell_id=arm.key,
        group_id=prepared.spec.name,
        workload=prepared.spec.name,
        decisions=Decisions(source="learned", label="learned"),
        arm=arm,
        device=options.device,
        batch_size=batch_size,
        dtype=prepared.dtype_name,
        threads=options.threads,
        stream_items=prepared.items,
        status="planned",
    )
    return RunningArm(
        cell=cell,
        call=Call(prepared.network(runs), Execution(strategy), prepared.items),
        strategy=strategy,
        as_written=prepared.as_written(runs),
        batches=prepared.batches(batch_size),
        device=devices.device(options.device),
    )


def _counted(arm: RunningArm, counter: FlopCounter, trace: Trace) -> Cell:
    """The arm's cell with the work that it needs for the stream."""
    required = PartCosts(arm.as_written, arm.batches[0][1]).required(trace)
    syncs, _ = count_syncs(lambda: [arm.call(start, x) for start, x in arm.batches], arm.device)
    flops = Flops(
        dense=NOT_COUNTED,
        required_region=_per_item(required.region, arm.items),
        required_total=_per_item(required.total, arm.items),
        executed=_per_item(counter.flops, arm.items),
        accounted=NOT_COUNTED,
    )
    counts = {"flops": flops, "operator_calls": float(counter.operator_calls), "host_syncs": syncs}
    return arm.cell.model_copy(update={"status": "ok", **counts})


def _per_item(total: Measured, items: int) -> Measured:
    return total if isinstance(total, Unavailable) else total / items


def _exact_work(cell: Cell, arm: RunningArm, own: list[Quantity]) -> dict[str, Any]:
    """By name: what is counted exactly and should not grow, over the whole stream."""
    work: dict[str, Any] = {}
    for quantity in (*QUANTITIES, *own):
        if quantity.exact and quantity.better == "down":
            value = evaluate(quantity, cell, arm)
            if isinstance(value, Unavailable):
                work[quantity.name] = value.model_dump()
            else:
                work[quantity.name] = value * arm.items if quantity.per == "item" else value
    return work


def _load_stream(file: Path) -> Dataset | None:
    return Dataset.load(file) if file.exists() else None


def _save_stream(file: Path, stream: Dataset) -> None:
    with write_aside(file) as whole:
        stream.save(whole)


def foreign_modules(tree: str, names: list[str]) -> list[str]:
    """First-party modules of this process that lie outside the tree: 'package.module (file)'."""
    root = Path(tree).resolve()
    found = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in names and file and not Path(file).resolve().is_relative_to(root):
            found.append(f"{name} ({file})")
    return found
