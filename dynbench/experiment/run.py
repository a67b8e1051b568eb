"""A run: plan, measure group by group in a worker process, write what is finished at once."""

from __future__ import annotations

import contextlib
import datetime
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynbench import __version__
from dynbench.errors import UserError
from dynbench.experiment.environment import git_state, process_environment, software
from dynbench.experiment.manager import Worker, WorkerDied
from dynbench.experiment.spec import Options, Workload, check_options, load_spec
from dynbench.store.run import Run, RunWriter
from dynbench.store.schema import Cell, Manifest, NotMeasured, RoundSample, WorkloadInfo

Say = Callable[[str], None]


@dataclass
class Group:
    """Cells measured together, as the worker planned them."""

    group_id: str
    workload: str
    file: str
    label: str
    batch_size: int
    cells: list[Cell]  # as planned: refused, or failed as long as not measured
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
    """How a run ended."""

    path: Path | None
    plan: Plan
    interrupted: bool = False
    failures: dict[str, str] = field(default_factory=dict)


class Observer:
    """Told how a run goes on; does nothing. The command line shows a progress bar."""

    def planned(self, plan: Plan) -> None:
        """The plan is known."""

    def group(self, group: Group) -> None:
        """A group begins."""

    def event(self, group: Group, event: dict[str, Any]) -> None:
        """The worker said something: an arm began, a round ended."""

    def finished(self, group: Group, cells: list[Cell]) -> None:
        """A group is measured and stored."""

    def say(self, text: str) -> None:
        """A sentence the user should see."""


class _Interrupts:
    """Ctrl-C once: let the worker finish its round; twice: the ordinary KeyboardInterrupt."""

    def __init__(self, worker: Worker, say: Say) -> None:
        self.asked, self._worker, self._say = False, worker, say

    def __enter__(self) -> _Interrupts:
        try:
            self._before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not in the main thread: nobody sends Ctrl-C here
            self._before = None
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            self._worker.kill()
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this round; what is measured is kept (Ctrl-C again to stop at once)")
        self._worker.interrupt()

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def run_experiment(
    workloads: list[str],
    options: Options,
    out: Path | None,
    *,
    command: list[str],
    resume: bool = False,
    dry_run: bool = False,
    observer: Observer | None = None,
) -> Result:
    """Measures workloads and writes a run directory.

    Args:
        workloads: names or TOML files.
        options: what the command line says.
        out: the run directory; not used for a dry run.
        command: the command line, for the manifest.
        resume: go on with the run in `out`; finished groups are not measured again.
        dry_run: plan only.
        observer: told how it goes on.

    Raises:
        UserError: bad options, an unwritable folder, or no workload that can be measured.
    """
    started = time.monotonic()
    observer = observer or Observer()
    check_options(options)
    specs = [load_spec(w) for w in workloads]
    worker = Worker(options.threads)
    with _Interrupts(worker, observer.say) as interrupts, contextlib.ExitStack() as stack:
        stack.callback(worker.kill)
        if dry_run:
            plan = _plan(worker, specs, options, None, observer)
            observer.planned(plan)
            return Result(None, plan, failures=plan.failures)
        assert out is not None
        writer, before = _open(out, options, specs, command, resume)
        plan = _plan(worker, specs, options, out, observer)
        if not plan.infos:
            raise UserError("; ".join(plan.failures.values()))
        observer.planned(plan)
        manifest = writer.manifest.model_copy(
            update={
                "workloads": plan.infos,
                "hardware": worker.ask({"do": "describe", **_request(options)}, "described", observer_none)["hardware"],
                "not_measured": [NotMeasured(what=f"workload {n}", why=w) for n, w in plan.failures.items()],
            }
        )
        writer.write_manifest(manifest)
        files = {s.name: str(s.file) for s in specs}
        timed_s = before.timed_s or 0.0
        spent_before = before.command_s or 0.0
        done = writer.finished_cells()
        for group in plan.groups:
            if interrupts.asked:
                break
            if all(c.cell_id in done for c in group.cells):
                continue
            for cell in group.refused:
                writer.append_cell(cell)
            observer.group(group)
            cells, samples, seconds = _measure(worker, group, options, out, observer)
            writer.write_samples(group.group_id, samples)
            for cell in cells:
                writer.append_cell(cell)
            timed_s += seconds
            observer.finished(group, cells)
            manifest = manifest.model_copy(
                update={"timed_s": timed_s, "command_s": spent_before + time.monotonic() - started}
            )
            writer.write_manifest(manifest)
        for name in [] if interrupts.asked else plan.infos:
            if name not in {g.workload for g in plan.groups} or manifest.workloads[name].accuracies:
                continue
            with contextlib.suppress(WorkerDied):
                request = {"do": "accuracy", "workload": name, "file": files[name], **_request(options)}
                answer = worker.ask(request, "accuracy", observer_none)
                info = WorkloadInfo.model_validate(
                    {**manifest.workloads[name].model_dump(), "accuracies": answer["accuracies"]}
                )
                manifest = manifest.model_copy(update={"workloads": {**manifest.workloads, name: info}})
                writer.write_manifest(manifest)
        manifest = manifest.model_copy(
            update={
                "finished": now(),
                "status": "interrupted" if interrupts.asked else "complete",
                "timed_s": timed_s,
                "command_s": spent_before + time.monotonic() - started,
            }
        )
        writer.write_manifest(manifest)
    return Result(out, plan, interrupts.asked, plan.failures)


def _with_accuracies(info: WorkloadInfo, before: Manifest) -> WorkloadInfo:
    known = before.workloads.get(info.name)
    return info if known is None else info.model_copy(update={"accuracies": known.accuracies})


def observer_none(event: dict[str, Any]) -> None:
    """Ignores an event."""


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _request(options: Options) -> dict[str, Any]:
    return {"options": options.model_dump(mode="json")}


def _open(
    out: Path, options: Options, specs: list[Workload], command: list[str], resume: bool
) -> tuple[RunWriter, Manifest]:
    asked: dict[str, object] = {
        "options": options.model_dump(mode="json"),
        "workloads": {s.name: s.model_dump(mode="json", by_alias=True) for s in specs},
    }
    if resume:
        before = Run.open(out).manifest
        if before.spec != asked:
            raise UserError(f"{out} was begun with other workloads or options; --resume goes on with the same ones")
        writer = RunWriter.resume(out)
        writer.write_manifest(before.model_copy(update={"status": "running", "finished": None}))
        return writer, before
    manifest = Manifest(
        dynbench_version=__version__, run_id=out.name, command=command, spec=asked, started=now(), seed=options.seed,
        hardware={}, software=software(), git=git_state(Path.cwd()), environment=process_environment(options.threads),
    )  # fmt: skip
    return RunWriter.create(out, manifest), manifest


def _plan(worker: Worker, specs: list[Workload], options: Options, out: Path | None, observer: Observer) -> Plan:
    plan = Plan([], {}, {})
    for spec in specs:
        observer.say(f"preparing {spec.name}")
        request = {
            "do": "prepare", "workload": spec.name, "file": str(spec.file), **_request(options),
            "run": None if out is None else str(out),
        }  # fmt: skip
        try:
            answer = worker.ask(request, "prepared", observer_none)
        except (UserError, WorkerDied) as e:
            plan.failures[spec.name] = str(e)
            if len(specs) > 1:  # the only one's reason is what the run ends with
                observer.say(f"{spec.name}: {e}")
            continue
        plan.infos[spec.name] = WorkloadInfo.model_validate(answer["info"])
        for g in answer["groups"]:
            cells = [Cell.model_validate(c) for c in g.pop("cells")]
            plan.groups.append(Group(**g, file=str(spec.file), cells=cells))
    return plan


def _measure(
    worker: Worker, group: Group, options: Options, out: Path, observer: Observer
) -> tuple[list[Cell], list[RoundSample], float]:
    """Measures a group; after a death once more without the cell that was running, which is recorded as failed.

    Returns:
        The measured and failed cells, the samples, and the seconds inside timed samples.
    """
    failed: dict[str, str] = {}
    reason = ""
    for _ in range(2):
        request = {
            "do": "measure", "workload": group.workload, "file": group.file, "label": group.label,
            "batch_size": group.batch_size, "process": max(worker.number, 0), "without": sorted(failed),
            **_request(options),
        }  # fmt: skip
        try:
            answer = worker.ask(request, "measured", lambda e: observer.event(group, e))
            cells = [Cell.model_validate(c) for c in answer["cells"]]
            samples = [RoundSample.model_validate(s) for s in answer["samples"]]
            return [*cells, *_failures(group, failed)], samples, answer["timed_s"]
        except (WorkerDied, UserError) as e:
            reason, arm = str(e), getattr(e, "arm", None)
            if arm is None:
                break
            observer.say(f"{group.group_id}: {reason} while running {arm}; once more without it")
            failed[arm] = reason
    observer.say(f"{group.group_id}: given up: {reason}")
    return _failures(group, {c.name: failed.get(c.name, reason) for c in group.cells}), [], 0.0


def _failures(group: Group, reasons: dict[str, str]) -> list[Cell]:
    return [
        c.model_copy(update={"status": "failed", "reason": reasons[c.name]})
        for c in group.cells
        if c.name in reasons and c.status != "refused"
    ]
