"""What measuring by the python agent adds to a time: the same file, core and options, by the agent and by dynbench.

Blocks take turns. In a block of the agent a process of its own measures a job, as on any device; in one of dynbench new
sessions are called and timed as `dynbench run` does it. Both run every network of the bundle in random order.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from bench.paired import LEAST_ROUNDS, Row, ratio
from dynbench import devices
from dynbench.deploy.build import compile_prepared
from dynbench.deploy.job import Job, Result, Timing, write_job
from dynbench.deploy.targets.local import Local
from dynbench.deploy.targets.profile import Reach
from dynbench.experiment import Options, load_spec
from dynbench.experiment.arms import GraphCall
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.graphs import proved_dynamic, proved_static
from dynbench.graph import Graph, Session
from dynbench.meters.loads import ClosedLoop
from dynbench.store.schema import Arm

MOST = 1.03  # times what dynbench measures
WORKLOADS = ("skipnet38_digits",)
BLOCKS = 2 * LEAST_ROUNDS  # of each of the two
LEAST_BLOCK_S, WARM_UP_S = 0.5, 0.5


@dataclass(frozen=True)
class Subject:
    """A network of a bundle, as both measure it."""

    name: str
    file: Path
    graph: Graph


def against_run(seconds: float, names: list[str] | None = None) -> Iterator[Row]:
    """Rows for every network of some workloads, at batch 1.

    Args:
        seconds: inside timed samples, for each workload.
        names: of the workloads; None: `WORKLOADS`.
    """
    for name in names or WORKLOADS:
        with tempfile.TemporaryDirectory() as folder:
            yield from _rows(name, Path(folder), max(LEAST_BLOCK_S, seconds / (2 * BLOCKS)))


def _rows(workload: str, folder: Path, block_s: float) -> Iterator[Row]:
    options = Options(batch_sizes=[1], decisions=["learned"])
    p = prepare(load_spec(workload), options)
    compile_prepared(p, folder / "bundle")
    core = max(os.sched_getaffinity(0))
    timing = Timing(warm_up_s=WARM_UP_S, time_limit_s=block_s, precision=1e-9, rounds_min=1, cpus=[core])
    job = write_job(folder / "bundle", folder / "job", timing)
    subjects = _subjects(p, job, folder / "job")
    inputs = np.load(folder / "job" / job.input.file)
    by_agent: dict[str, list[float]] = {s.name: [] for s in subjects}
    by_run: dict[str, list[float]] = {s.name: [] for s in subjects}
    for number in range(BLOCKS):
        turns = [lambda: _agent_block(folder / "job"), lambda: _run_block(p, subjects, inputs, core, block_s)]
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            found = turns[which]()
            for name, ns in found.items():
                (by_agent, by_run)[which][name].append(ns)
    for s in subjects:
        agent, run = np.array(by_agent[s.name]), np.array(by_run[s.name])
        times = f"{np.median(agent) / 1e6:.3g} and {np.median(run) / 1e6:.3g} ms/item"
        note = f"{times}, {BLOCKS} blocks of {block_s:.1f} s each"
        yield Row(f"{workload}, {s.name}, batch 1: python agent / dynbench run", ratio(agent, run), "<=", MOST, note)


def _subjects(p: Prepared, job: Job, folder: Path) -> list[Subject]:
    """The networks of a job with their graphs; that these are the files of the job is checked."""
    source = next(s for s in p.sources if s.decisions.source == "learned")
    forms = {b.name: b.form for b in p.spec.baselines}
    found = []
    for arm in job.arms:
        file = folder / (arm.graphs.single or arm.graphs.any)
        if arm.network == "dynamic":
            graph = proved_dynamic(p, source, single=arm.graphs.single is not None, replay=False).graph
        else:
            graph = proved_static(p, Arm(kind="baseline", baseline=arm.network, form=forms[arm.network])).graph
        assert list(graph.answers) == [a.output for a in arm.answers], f"{file} is another graph"
        found.append(Subject(arm.name, file, graph))
    return found


def _agent_block(job: Path) -> dict[str, float]:
    """ns per item of each network, the median over rounds, by the agent in a process of its own."""
    place = Local("here", Reach(kind="local")).run(job, "python", deadline_s=300, progress=lambda _: None)
    result = Result.model_validate_json(place.read_bytes())
    assert all(arm.rounds for arm in result.arms), [arm.reason for arm in result.arms]
    return {arm.name: float(np.median([sum(r) / len(r) for r in arm.rounds])) for arm in result.arms}


def _run_block(p: Prepared, subjects: list[Subject], inputs: np.ndarray, core: int, block_s: float) -> dict[str, float]:
    """The same as `dynbench run` measures: its sessions, its calls, its load."""
    import torch

    device, load, order = devices.device("cpu"), ClosedLoop(), random.Random(0)
    batches = [(i, torch.from_numpy(inputs[i : i + 1])) for i in range(len(inputs))]
    with _on(core):
        calls = {s.name: GraphCall(p.model, _session(s), None, len(inputs)) for s in subjects}
        rounds: dict[str, list[float]] = {name: [] for name in calls}
        end = time.monotonic() + WARM_UP_S
        while time.monotonic() < end:
            for call in calls.values():
                load.issue(call, batches, device)
        end = time.monotonic() + block_s
        while time.monotonic() < end or not all(rounds.values()):
            for name in order.sample(list(calls), len(calls)):
                timings = load.issue(calls[name], batches, device)
                rounds[name].append(sum(t.duration_ns for t in timings) / len(timings))
    return {name: float(np.median(ns)) for name, ns in rounds.items()}


def _session(s: Subject) -> Session:
    """dynbench's session, of the very file and with the very options that the agent has."""
    session = Session(s.graph, fast=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 4
    session.session = onnxruntime.InferenceSession(str(s.file), options, providers=["CPUExecutionProvider"])
    return session


@contextlib.contextmanager
def _on(core: int) -> Iterator[None]:
    """Pins this process to a core for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
