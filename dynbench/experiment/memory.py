"""Peak memory of a cell on a CPU: in a process of its own, because a shared one remembers what others needed."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynbench import devices
from dynbench.dynamic import Execution, Trace
from dynbench.dynamic.trace import Entry, Key
from dynbench.experiment.build import Prepared, build_baseline, build_model
from dynbench.experiment.spec import Baseline, Workload
from dynbench.meters.memory import peak_bytes
from dynbench.store.schema import Quantity, Unavailable
from dynbench.strategies import STRATEGIES

if TYPE_CHECKING:
    from dynbench.experiment.measure import Arm

PROBE_TIMEOUT_S = 60.0
Tables = dict[Key, tuple[np.ndarray, np.ndarray]]


def start_forks() -> None:
    """Starts the process that probes are forked from: torch is imported there, and nothing has run yet."""
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(["dynbench.experiment.memory"])


def cell_peak_bytes(p: Prepared, arm: Arm, batch_size: int) -> Quantity:
    """Peak memory growth of one batch of a cell, in bytes; weights, inputs and the interpreter not counted."""
    device = devices.device(p.options.device)
    start, x = p.batches(batch_size)[0]
    if p.device.type != "cpu":
        return peak_bytes(lambda: arm.call(start, x), device)
    if p.dtype == torch.bfloat16:
        return Unavailable(unavailable="inputs in bfloat16 cannot be handed to a fresh process")
    ours, theirs = multiprocessing.Pipe(duplex=False)
    baseline = None
    if arm.execution is None:
        baseline = next((b for b in p.spec.baselines if b.name == arm.cell.name), p.spec.primary)
    strategy = None if arm.execution is None else arm.cell.name.split(",")[0]
    trace = None
    if arm.execution is not None and arm.execution.replay is not None:
        full = arm.execution.replay
        trace = ({k: (e.value.numpy(), e.reached.numpy()) for k, e in full.entries.items()}, full.covers)
    process = multiprocessing.Process(
        target=_probe,
        args=(theirs, p.spec, baseline, strategy, trace, p.items, x.numpy(), p.options.dtype, p.options.threads),
        daemon=True,
    )  # fmt: skip
    process.start()
    theirs.close()
    try:
        if not ours.poll(PROBE_TIMEOUT_S):
            return Unavailable(unavailable=f"the fresh process did not answer within {PROBE_TIMEOUT_S:.0f} s")
        found = ours.recv()
    except EOFError:
        return Unavailable(unavailable="the fresh process died")
    finally:
        process.kill()
        process.join()
    return Unavailable(unavailable=found) if isinstance(found, str) else found


def _probe(
    reply: Connection,
    spec: Workload,
    baseline: Baseline | None,
    strategy: str | None,
    decisions: tuple[Tables, frozenset[str]] | None,
    items: int,
    x: np.ndarray,
    dtype: str,
    threads: int,
) -> None:
    try:
        torch.set_num_threads(threads)
        inputs = torch.from_numpy(x)
        model = build_model(spec, spec.folder).to(getattr(torch, dtype))
        with torch.inference_mode():
            if baseline is not None:
                net = build_baseline(baseline, spec, model, inputs[:1])
                found = peak_bytes(lambda: net(inputs), devices.device("cpu"))
            else:
                ex = Execution(STRATEGIES[str(strategy)](), replay=_trace(decisions, items))
                found = peak_bytes(lambda: ex.run(model, inputs, start=0, items=items), devices.device("cpu"))
        reply.send(found.unavailable if isinstance(found, Unavailable) else found)
    except Exception as e:  # noqa: BLE001 (whatever it is, the parent has to hear of it)
        reply.send(f"the fresh process failed: {type(e).__name__}: {e}")


def _trace(decisions: tuple[Tables, frozenset[str]] | None, items: int) -> Trace | None:
    if decisions is None:
        return None
    tables, covers = decisions
    entries = {k: Entry(torch.from_numpy(v), torch.from_numpy(r)) for k, (v, r) in tables.items()}
    return Trace(entries, items, covers=covers)
