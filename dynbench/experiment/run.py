"""A run: plan, measure group by group in a worker process, write what is finished at once."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.environment import git_state, process_environment, software
from dynbench.experiment.manager import Worker, WorkerDied
from dynbench.experiment.spec import Options, Workload, check_options, load_specs
from dynbench.files import make_folder
from dynbench.launch import LAUNCHERS, PROTOCOL
from dynbench.parts import choose
from dynbench.scratch import remove_abandoned
from dynbench.store.lock import locked
from dynbench.store.run import LOG, Run, RunWriter
from dynbench.store.scaling import Scaling, read_scaling, write_scaling
from dynbench.store.schema import Accuracy, Cell, Manifest, NotMeasured, Sitting, WorkloadInfo
from dynbench.unavailable import Unavailable
from dynbench.version import __version__

Say = Callable[[str], None]
ATTEMPTS = 4  # to measure a group: a network that ends the process may do so in several ways
LARGE_SHARE = 0.25  # of the memory: a process that holds more after a group, such as in an engine's pools, is replaced


@dataclass
class Group:
    """Cells measured together, as the worker planned them."""

    group_id: str
    workload: str
    file: str
    label: str
    batch_size: int
    cells: list[Cell]  # as planned, or refused with the reason
    estimate_s: float

    @property
    def refused(self) -> list[Cell]:
        """Cells that make no sense, with their reason."""
        return [c for c in self.cells if c.status == "refused"]


@dataclass
class Plan:
    """What a run will do."""

    groups: list[Group]
    infos: dict[str, WorkloadInfo]
    failures: dict[str, str]

    @property
    def estimate_s(self) -> float:
        """At most so long inside timed samples."""
        return sum(g.estimate_s for g in self.groups)


@dataclass
class Result:
    """How a run ended.

    Attributes:
        path: the run directory; None: a dry run.
        plan: what it was to do.
        interrupted: the user ended it.
        failures: workloads that could not be prepared, and why.
        unmeasured: workloads of which everything that was tried failed, and why.
    """

    path: Path | None
    plan: Plan
    interrupted: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)


class Observer:
    """Follows a run; does nothing. The command line shows a progress bar."""

    def planned(self, plan: Plan) -> None:
        """The plan is known."""

    def group(self, group: Group) -> None:
        """A group begins."""

    def event(self, group: Group, event: dict[str, Any]) -> None:
        """The worker said something: an arm began, a round ended."""

    def waiting(self, on: str, seconds: int) -> None:
        """The worker has said nothing for so long, while it was busy with this workload or arm."""

    def finished(self, group: Group, cells: list[Cell]) -> None:
        """A group is measured and stored."""

    def say(self, text: str) -> None:
        """A sentence the user should see."""


class Terminated(DynbenchError):
    """SIGTERM came; what is measured is on the disk."""


class _Interrupts:
    """Ctrl-C once: let the worker finish its round; twice: the ordinary KeyboardInterrupt. SIGTERM: `Terminated`."""

    def __init__(self, worker: Worker, say: Say) -> None:
        self.asked, self._worker, self._say = False, worker, say

    def __enter__(self) -> _Interrupts:
        try:
            self._before = {
                signal.SIGINT: signal.signal(signal.SIGINT, self._ask),
                signal.SIGTERM: signal.signal(signal.SIGTERM, self._end),
            }
        except ValueError:  # not in the main thread, which alone gets signals
            self._before = {}
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            self._worker.kill()
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this round; what is measured is kept (Ctrl-C again to stop at once)")
        self._worker.interrupt()

    def _end(self, *_: object) -> None:
        raise Terminated("ended by SIGTERM; what is measured is kept, --resume goes on")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def run_experiment(
    workloads: list[str],
    options: Options,
    out: Path | None,
    *,
    command: list[str],
    resume: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    hang_s: float | None = None,
    observer: Observer | None = None,
) -> Result:
    """Measures workloads and writes a run directory.

    Args:
        workloads: names or TOML files.
        options: what the command line says.
        out: the run directory; not used for a dry run.
        command: the command line, for the manifest.
        resume: go on with the run in `out`; finished groups are not measured again.
        retry_failed: of a resumed run, groups with a failed cell are.
        dry_run: plan only.
        hang_s: without a sign of life for so long, the measuring process counts as hanging; None: `manager.HANG_S`.
        observer: follows the run.

    Raises:
        UserError: bad options, a folder that cannot be written or that another process writes, or no workload that can
            be measured.
        Terminated: SIGTERM came.
    """
    observer = observer or Observer()
    options = check_options(options)
    specs = load_specs(workloads)
    launcher = choose(options.target, LAUNCHERS, Path.cwd(), "a target", PROTOCOL)
    log = None if dry_run or out is None else Path(os.path.realpath(out)) / LOG
    worker = Worker(options.threads, hang_s, launcher, log)
    with _Interrupts(worker, observer.say) as interrupts, contextlib.ExitStack() as stack:
        if log is not None:
            remove_abandoned()
            make_folder(log.parent)
            stack.enter_context(locked(log.parent))
        stack.callback(worker.kill)
        if dry_run:
            plan = _plan(worker, specs, options, None, observer)
            observer.planned(plan)
            return Result(None, plan, failures=plan.failures)
        assert out is not None
        writer = _open(out, options, specs, command, resume)
        record = stack.enter_context(_Record(writer))
        plan = _plan(worker, specs, options, out, observer)
        if not plan.infos:
            raise UserError("; ".join(plan.failures.values()))
        observer.planned(plan)
        described = worker.ask({"do": "describe", **_request(options)}, "described", _waits(observer, "the device"))
        record.update(
            workloads={name: _with_accuracies(info, writer.manifest) for name, info in plan.infos.items()},
            hardware=described["hardware"],
            environment={
                **writer.manifest.environment,
                "target": {"name": launcher.name, **launcher.facts()},
                "engines": described["engines"],
            },
            not_measured=[NotMeasured(what=f"workload {n}", why=w) for n, w in plan.failures.items()],
        )
        for spec in specs:
            if spec.name not in plan.infos:
                continue
            groups = [g for g in plan.groups if g.workload == spec.name]
            _measure_groups(worker, groups, options, record, observer, interrupts, retry_failed)
            if not interrupts.asked:
                _measure_accuracies(worker, spec, options, record, observer)
            if options.scaling and not interrupts.asked:
                _measure_scaling(worker, spec, options, record, observer)
            if interrupts.asked:
                break
        record.update(finished=now(), status="interrupted" if interrupts.asked else "complete")
    return Result(out, plan, interrupts.asked, plan.failures, _unmeasured(writer.path, plan))


def _unmeasured(run: Path, plan: Plan) -> dict[str, str]:
    """Workloads of which no cell could be measured, though some could have been, with a reason."""
    cells = [c for c in Run.open(run).cells if c.workload in plan.infos]
    failed = {c.workload: c.reason or "" for c in reversed(cells) if c.status == "failed"}
    return {
        name: why for name, why in failed.items() if not any(c.workload == name and c.status == "ok" for c in cells)
    }


class _Record:
    """The manifest of a run that goes on, and how long it took so far; a signal that ends the block is noted in it."""

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self._begin, self._before_s = time.monotonic(), writer.manifest.command_s or 0.0

    def __enter__(self) -> _Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, (Terminated, KeyboardInterrupt)):
            self.update(finished=now(), status="interrupted")

    def update(self, **changes: Any) -> None:
        """Writes the manifest with these changes."""
        command_s = self._before_s + time.monotonic() - self._begin
        self.writer.write_manifest(self.writer.manifest.model_copy(update={**changes, "command_s": command_s}))


def _measure_groups(
    worker: Worker,
    groups: list[Group],
    options: Options,
    record: _Record,
    observer: Observer,
    interrupts: _Interrupts,
    retry_failed: bool,
) -> None:
    """Measures what is not finished yet, group by group; what is measured is on the disk before the next one begins."""
    writer = record.writer
    before = Run.open(writer.path)
    done = before.finished_cells(failed_too=not retry_failed)
    for group in groups:
        if interrupts.asked:
            return
        if all(c.cell_id in done for c in group.cells):
            continue
        if unplanned := {c.cell_id for c in before.cells if c.group_id == group.group_id} - {
            c.cell_id for c in group.cells
        }:  # such as those of the fastest way, which may be another one now
            writer.forget(unplanned)
        for cell in group.refused:
            writer.append_cell(cell)
        observer.group(group)
        cells, seconds, memory_share = _measure(worker, group, options, writer.path, observer)
        for cell in _in_order(group, cells):
            writer.append_cell(cell)
        observer.finished(group, cells)
        record.update(timed_s=(writer.manifest.timed_s or 0.0) + seconds)
        if memory_share > LARGE_SHARE:
            worker.kill()  # the next group gets another


def _in_order(group: Group, cells: list[Cell]) -> list[Cell]:
    """The order in which cells are written: a group is finished when all planned ones are there, so one comes last."""
    known = {c.cell_id for c in group.cells}
    planned, added = [c for c in cells if c.cell_id in known], [c for c in cells if c.cell_id not in known]
    return [*planned[:-1], *added, *planned[-1:]]


def _measure_accuracies(worker: Worker, spec: Workload, options: Options, record: _Record, observer: Observer) -> None:
    """Measures the accuracies of a workload, if it has none yet."""
    workloads = record.writer.manifest.workloads
    if workloads[spec.name].accuracies:
        return
    request = {"do": "accuracy", "file": spec.reference, **_request(options)}
    try:
        answer = worker.ask(request, "accuracy", _waits(observer, f"accuracy of {spec.name}"))
        found = {name: Accuracy.model_validate(table) for name, table in answer["accuracies"].items()}
    except (WorkerDied, UserError) as e:
        found = {"dynamic": Accuracy(value=Unavailable(unavailable=str(e)), metric="accuracy")}
    info = workloads[spec.name].model_copy(update={"accuracies": found})
    record.update(workloads={**workloads, spec.name: info})


def _measure_scaling(worker: Worker, spec: Workload, options: Options, record: _Record, observer: Observer) -> None:
    """Measures what the cost model of a workload is made of, if that is not done; what fails is not measured."""
    path = record.writer.path
    found = read_scaling(path)
    if any(one.workload == spec.name for one in found):
        return
    request = {"do": "scaling", "file": spec.reference, "run": str(path.resolve()), **_request(options)}
    try:
        answer = worker.ask(request, "scaling", _waits(observer, f"T(n) of {spec.name}"))
    except (WorkerDied, UserError) as e:
        missed = NotMeasured(what=f"T(n) of {spec.name}", why=str(e))
        record.update(not_measured=[*record.writer.manifest.not_measured, missed])
        return
    write_scaling(path, [*found, Scaling.model_validate(answer["scaling"])])


def _with_accuracies(info: WorkloadInfo, before: Manifest) -> WorkloadInfo:
    """With the accuracies that an earlier sitting of the run measured of the same weights on the same inputs."""
    known = before.workloads.get(info.name)
    same = known is not None and (known.weights_sha256, known.stream_hash) == (info.weights_sha256, info.stream_hash)
    return info.model_copy(update={"accuracies": known.accuracies}) if known is not None and same else info


def _waits(observer: Observer, on: str) -> Callable[[dict[str, Any]], None]:
    """Tells an observer when the worker is silent; other events mean nothing outside a group."""

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "silent":
            observer.waiting(on, event["seconds"])

    return tell


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _request(options: Options) -> dict[str, Any]:
    return {"options": options.model_dump(mode="json")}


def _open(out: Path, options: Options, specs: list[Workload], command: list[str], resume: bool) -> RunWriter:
    asked: dict[str, Any] = {
        "options": options.model_dump(mode="json"),
        "workloads": {s.name: s.model_dump(mode="json", by_alias=True) for s in specs},
    }
    if resume:
        writer = RunWriter.resume(out)
        if not _is_same_request(writer.manifest.spec, asked):
            raise UserError(f"{out} was begun with other workloads or options; --resume goes on with the same ones")
        sitting = Sitting(started=now(), dynbench_version=__version__, git=git_state(Path.cwd()))
        changes = {"status": "running", "finished": None, "resumed": [*writer.manifest.resumed, sitting]}
        writer.write_manifest(writer.manifest.model_copy(update=changes))
        return writer
    manifest = Manifest(
        dynbench_version=__version__,
        run_id=out.name,
        command=command,
        spec=asked,
        started=now(),
        seed=options.seed,
        hardware={},
        software=software(),
        git=git_state(Path.cwd()),
        environment=process_environment(options.threads),
    )
    return RunWriter.create(out, manifest)


def _is_same_request(stored: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a run was asked for like this one, perhaps of an earlier version, which knew fewer keys.

    Such a version cast every network to float32 where none was asked for; which type a cell has is in its identity.
    """
    try:
        before = Options.model_validate(stored["options"])
        workloads = {name: Workload.model_validate(table) for name, table in stored["workloads"].items()}
    except (ValueError, KeyError, AttributeError):
        return False
    if asked["options"]["dtype"] is None and before.dtype == "float32":
        before = before.model_copy(update={"dtype": None})
    known = {name: workload.model_dump(mode="json", by_alias=True) for name, workload in workloads.items()}
    return {"options": before.model_dump(mode="json"), "workloads": known} == asked


def _plan(worker: Worker, specs: list[Workload], options: Options, out: Path | None, observer: Observer) -> Plan:
    plan = Plan([], {}, {})
    for spec in specs:
        observer.say(f"preparing {spec.name}")
        request = {
            "do": "prepare",
            "file": spec.reference,
            "run": None if out is None else str(out.resolve()),
            **_request(options),
        }
        try:
            answer = worker.ask(request, "prepared", _waits(observer, spec.name))
        except (UserError, WorkerDied) as e:
            plan.failures[spec.name] = str(e)
            if len(specs) > 1:  # the only one's reason is what the run ends with
                observer.say(f"{spec.name}: {e}")
            continue
        info = WorkloadInfo.model_validate(answer["info"])
        _check_quantities(info, plan)
        plan.infos[spec.name] = info
        for g in answer["groups"]:
            cells = [Cell.model_validate(c) for c in g.pop("cells")]
            plan.groups.append(Group(**g, file=spec.reference, cells=cells))
    return plan


def _check_quantities(info: WorkloadInfo, plan: Plan) -> None:
    """Own quantities of one key must be the same in all workloads of a run: they share a column.

    Raises:
        UserError: two differ.
    """
    known = {q.key: q for other in plan.infos.values() for q in other.quantities}
    for quantity in info.quantities:
        if known.get(quantity.key, quantity) != quantity:
            raise UserError(
                f"workload {info.name}: quantity {quantity.key!r} is described otherwise by another workload of this "
                "run; choose another key"
            )


def _measure(
    worker: Worker, group: Group, options: Options, out: Path, observer: Observer
) -> tuple[list[Cell], float, float]:
    """Measures a group; after a death again without the arm that was running, which is recorded as failed.

    The measuring process writes the group's samples itself.

    Returns:
        The measured and failed cells, the seconds inside timed samples, and the share of the machine's memory that the
        process holds now.
    """
    failed: dict[str, str] = {}
    reason = ""
    for _ in range(ATTEMPTS):
        request = {
            "do": "measure",
            "file": group.file,
            "label": group.label,
            "batch_size": group.batch_size,
            "cells": [c.model_dump(mode="json") for c in group.cells],
            "run": str(out.resolve()),
            "without": sorted(failed),
            **_request(options),
        }
        try:
            request["process"] = worker.started()
            answer = worker.ask(request, "measured", lambda e: _follow(observer, group, e))
            cells = [Cell.model_validate(c) for c in answer["cells"]]
            return [*cells, *_failures(group, failed)], answer["timed_s"], answer["memory_share"]
        except (WorkerDied, UserError) as e:
            reason, arm = str(e), getattr(e, "arm", None)
            if arm is None:
                break
            observer.say(f"{group.group_id}: {reason} while running {arm}; again without it")
            failed[arm] = reason
    observer.say(f"{group.group_id}: given up: {reason}")
    return _failures(group, {c.arm.key: failed.get(c.arm.key, reason) for c in group.cells}), 0.0, 0.0


def _follow(observer: Observer, group: Group, event: dict[str, Any]) -> None:
    if event["event"] == "silent":
        observer.waiting(event["arm"] or group.workload, event["seconds"])
    else:
        observer.event(group, event)


def _failures(group: Group, reasons: dict[str, str]) -> list[Cell]:
    """The planned cells of the arms that there are reasons for, as failed."""
    return [
        c.model_copy(update={"status": "failed", "reason": reasons[c.arm.key]})
        for c in group.cells
        if c.arm.key in reasons and c.status == "planned"
    ]
