"""A run on devices: a bundle per workload, a job per device and workload, a run directory of what came back."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dynbench import devices
from dynbench.deploy.build import compile_prepared
from dynbench.deploy.bundle import Manifest as Bundle
from dynbench.deploy.cells import Subject, failed, measured
from dynbench.deploy.job import KNOWN_AHEAD, Job, Result, Timing, write_job
from dynbench.deploy.sustained import summed_up
from dynbench.deploy.targets.base import Failed, Lost, Target
from dynbench.deploy.targets.browser import Browser
from dynbench.deploy.targets.find import open_target
from dynbench.deploy.targets.profile import DeviceProfile
from dynbench.errors import DynbenchError, UserError
from dynbench.experiment import Options, Plan, Terminated, Workload, load_specs
from dynbench.experiment import Result as Outcome
from dynbench.experiment.accuracy import accuracies
from dynbench.experiment.build import Prepared, prepare
from dynbench.experiment.environment import git_state, process_environment, software
from dynbench.experiment.plan import describe
from dynbench.experiment.run import now
from dynbench.experiment.ways import dynamic_ways
from dynbench.files import make_folder, make_own_folder, write_bytes
from dynbench.scratch import scratch
from dynbench.store.lock import locked
from dynbench.store.run import Run, RunWriter, file_name, write_samples
from dynbench.store.schema import Arm, Cell, Decisions, Manifest, NotMeasured, WorkloadInfo
from dynbench.version import __version__

RESULTS = "results"  # in the run directory: what each device sent, as it was
MARGIN_S = 60.0  # from the deadline of a job to that of its target: copying, starting
START_S = 120.0  # of an agent: loading and comparing every network
PEOPLE_S = 3600.0  # until somebody opens the page
WAY: dict[str, Any] = {"engine": "onnxruntime", "control": "graph"}


@dataclass(frozen=True)
class Devices:
    """What is asked for.

    Attributes:
        targets: by name, in the order in which they are measured.
        options: of the run; those about this machine have their defaults.
        browsers: how many devices must have finished at the target `browser`; None: until the deadline or Ctrl-C.
        sustained_s: of load for each network after its rounds; energy needs 10 s.
    """

    targets: dict[str, DeviceProfile]
    options: Options
    browsers: int | None = None
    sustained_s: float = 0.0

    @property
    def asked(self) -> dict[str, Any]:
        """For the manifest."""
        return {"targets": list(self.targets), "browsers": self.browsers, "sustained_s": self.sustained_s}


@dataclass
class _Ready:
    """A workload with its bundle."""

    spec: Workload
    folder: Path
    bundle: Bundle
    decisions: Decisions
    arms: dict[str, Arm]


@dataclass
class _Sitting:
    """A run while it goes on: where it is written, and who is told."""

    writer: RunWriter
    scratch: Path
    say: Callable[[str], None]
    show: Callable[[str], None]
    ready: dict[str, _Ready] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._before_s = self.writer.manifest.command_s or 0.0

    def update(self, **changes: Any) -> None:
        """Writes the manifest with these changes."""
        command_s = self._before_s + time.monotonic() - self.begin
        self.writer.write_manifest(self.writer.manifest.model_copy(update={**changes, "command_s": command_s}))

    def is_done(self, target: str, workload: str, *, retry_failed: bool) -> bool:
        """Whether a device of a target has cells of a workload."""
        jobs = [
            table["jobs"][workload]  # type: ignore[index]
            for table in self.writer.manifest.devices.values()
            if table.get("target") == target and workload in table.get("jobs", {})  # type: ignore[operator]
        ]
        return any(not retry_failed or job["status"] == "ok" for job in jobs)

    def store(self, device: str, about: dict[str, Any], workload: str, job: dict[str, Any], cells: list[Cell]) -> None:
        """Cells first: a job counts as done when the manifest names it."""
        for cell in cells:
            self.writer.append_cell(cell)
        known = self.writer.manifest.devices
        jobs = {**known.get(device, {}).get("jobs", {}), workload: job}  # type: ignore[dict-item]
        self.update(devices={**known, device: {**known.get(device, {}), **about, "jobs": jobs}})


def run_on_devices(
    workloads: Sequence[str],
    asked: Devices,
    out: Path,
    *,
    command: list[str],
    resume: bool = False,
    retry_failed: bool = False,
    say: Callable[[str], None] = lambda _: None,
    show: Callable[[str], None] = print,
) -> Outcome:
    """Measures workloads on devices and writes a run directory.

    Args:
        workloads: names or TOML files.
        asked: which devices, and how.
        out: the run directory.
        command: the command line, for the manifest.
        resume: go on with the run in `out`: only jobs that have no cells are measured.
        retry_failed: of a resumed run, those that failed, too.
        say: is told what happens.
        show: is given what people need to join by a browser.

    Raises:
        UserError: a workload that cannot be read, a folder that cannot be written, or no workload that can be compiled.
        Terminated: SIGTERM came; what is measured is on the disk.
    """
    specs = load_specs(workloads)
    make_folder(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(out))
        stack.enter_context(_terminable())
        folder = stack.enter_context(scratch("devices"))
        sitting = _Sitting(_open(out, asked, specs, command, resume), folder, say, show)
        interrupted = False
        try:
            left = {
                name: [s for s in specs if not sitting.is_done(name, s.name, retry_failed=retry_failed)]
                for name in asked.targets
            }
            for spec in specs:
                if any(spec in todo for todo in left.values()):
                    _compile(sitting, spec, asked.options)
            if not sitting.writer.manifest.workloads:
                raise UserError("; ".join(sitting.failures.values()))
            for name, todo in left.items():
                _measure(sitting, asked, name, [sitting.ready[s.name] for s in todo if s.name in sitting.ready])
        except KeyboardInterrupt:
            interrupted = True
            say("ended by Ctrl-C; what is measured is kept, --resume goes on")
        except Terminated:
            sitting.update(finished=now(), status="interrupted")
            raise
        sitting.update(finished=now(), status="interrupted" if interrupted else "complete")
        infos = sitting.writer.manifest.workloads
        return Outcome(out, Plan([], infos, sitting.failures), interrupted, sitting.failures, _unmeasured(sitting))


def _unmeasured(sitting: _Sitting) -> dict[str, str]:
    """What nothing could be measured of, with a reason."""
    found = {n.what: n.why for n in sitting.writer.manifest.not_measured if not n.what.startswith("workload ")}
    cells = Run.open(sitting.writer.path).cells
    places = dict.fromkeys((c.workload, c.device) for c in cells)
    for workload, device in places:
        mine = [c for c in cells if (c.workload, c.device) == (workload, device)]
        if not any(c.status == "ok" for c in mine):
            found[f"{workload} on {device}"] = mine[0].reason or ""
    return found


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGINT end the run as exceptions do, so that nothing is left running on a device.

    Also where the shell has SIGINT ignored, as for a command in the background.
    """

    def end(*_: object) -> None:
        raise Terminated("ended by SIGTERM; what is measured is kept, --resume goes on")

    try:
        before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, end),
            signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        }
    except ValueError:  # not in the main thread, which alone gets signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open(out: Path, asked: Devices, specs: list[Workload], command: list[str], resume: bool) -> RunWriter:
    spec: dict[str, object] = {
        "options": asked.options.model_dump(mode="json"),
        "workloads": {s.name: s.model_dump(mode="json", by_alias=True) for s in specs},
        "devices": asked.asked,
    }
    if resume:
        writer = RunWriter.resume(out)
        if writer.manifest.spec != spec:
            raise UserError(f"{out} was begun with other workloads or options; --resume goes on with the same ones")
        unfinished: dict[str, Any] = {"status": "running", "finished": None, "not_measured": []}
        writer.write_manifest(writer.manifest.model_copy(update=unfinished))
        return writer
    return RunWriter.create(
        out,
        Manifest(
            dynbench_version=__version__,
            run_id=out.name,
            command=command,
            spec=spec,
            started=now(),
            seed=asked.options.seed,
            hardware=devices.device("cpu").describe(),
            software=software(),
            git=git_state(Path.cwd()),
            environment=process_environment(asked.options.threads),
        ),
    )


def _compile(sitting: _Sitting, spec: Workload, options: Options) -> None:
    """Makes the bundle of a workload, and notes what a report says of it; one that has none costs no other workload."""
    sitting.say(f"{spec.name}: making its bundle")
    torch.set_num_threads(options.threads)
    try:
        p = prepare(spec, options)
        folder = sitting.scratch / file_name(spec.name)
        written = compile_prepared(p, folder / "bundle", controls=options.controls != "none")
        info = _described(sitting, p)
        source = next(s for s in p.sources if s.decisions.source == "learned")
        decisions = p.decisions(source, max(p.batch_sizes))
    except DynbenchError as e:
        sitting.failures[spec.name] = str(e)
        sitting.say(f"{spec.name}: {e}")
        missed = NotMeasured(what=f"workload {spec.name}", why=str(e))
        sitting.update(not_measured=[*sitting.writer.manifest.not_measured, missed])
        return
    forms = {b.name: b.form for b in spec.baselines}
    names = dict.fromkeys(g.network for g in written.manifest.graphs if g.network != "dynamic")
    arms = {name: Arm(kind="baseline", baseline=name, form=forms.get(name, "plain"), **WAY) for name in names}
    dynamic = next((arm for arm in dynamic_ways(p, source) if arm.control == "graph"), None)
    dynamic = dynamic or Arm(kind="strategy", strategy="compaction", live=True, **WAY)
    known = dynamic.model_copy(update={"kind": "control", "live": False, "without": "deciding"})
    arms = {"dynamic": dynamic, **arms, KNOWN_AHEAD: known}
    sitting.ready[spec.name] = _Ready(spec, folder, written.manifest, decisions, arms)
    sitting.update(workloads={**sitting.writer.manifest.workloads, spec.name: info})


def _described(sitting: _Sitting, p: Prepared) -> WorkloadInfo:
    """With the accuracies, unless an earlier sitting has measured them."""
    info = describe(p, sitting.writer.path)
    before = sitting.writer.manifest.workloads.get(info.name)
    return info.model_copy(update={"accuracies": before.accuracies if before else accuracies(p)})


def _measure(sitting: _Sitting, asked: Devices, name: str, todo: list[_Ready]) -> None:
    """Measures workloads on a target."""
    profile = asked.targets[name]
    subjects: dict[str, Subject] = {}
    for ready in todo:
        try:
            folder = ready.folder / file_name(name)
            timing, primary = _timing(asked, profile, ready), ready.bundle.primary
            job = write_job(ready.folder / "bundle", folder, timing, twice=primary, controls=True)
        except UserError as e:
            sitting.failures[ready.spec.name] = str(e)
            sitting.say(str(e))
            missed = NotMeasured(what=f"workload {ready.spec.name} on {name}", why=str(e))
            sitting.update(not_measured=[*sitting.writer.manifest.not_measured, missed])
            continue
        subjects[str(folder)] = Subject(ready.bundle, ready.decisions, ready.arms, job, ready.bundle.no_controls)
    if not subjects:
        return
    target = open_target(name, profile)
    about: dict[str, Any] = {"target": name, "title": profile.title, **target.facts()}
    if isinstance(target, Browser):
        _by_browsers(sitting, asked, dataclasses.replace(target, show=sitting.show), about, subjects)
        return
    for place, subject in subjects.items():
        _by_target(sitting, target, profile, about, Path(place), subject)


def _timing(asked: Devices, profile: DeviceProfile, ready: _Ready) -> Timing:
    options, arms = asked.options, len(ready.arms) + 1
    sizes = options.batch_sizes or [1]
    device = profile.target.timing()
    waits = device["cool_down_s"] if device["max_temperature_c"] is not None else 0.0
    timed = len(sizes) * (2 * options.time_limit_s + waits)
    load = arms * (asked.sustained_s + waits) if asked.sustained_s else 0.0
    return Timing(
        batch_sizes=sizes,
        threads=options.threads,
        seed=options.seed,
        time_limit_s=options.time_limit_s,
        precision=options.precision,
        sustained_s=asked.sustained_s,
        deadline_s=START_S + timed + load,
        **device,
    )


def _by_target(
    sitting: _Sitting, target: Target, profile: DeviceProfile, about: dict[str, Any], folder: Path, subject: Subject
) -> None:
    """Measures a job on a device that is asked for its result."""
    job, deadline_s = subject.job, subject.job.deadline_s + MARGIN_S
    try:
        place = target.run(folder, profile.target.measures, deadline_s=deadline_s, progress=sitting.say)
        result = Result.model_validate_json(place.read_bytes())
    except (Lost, Failed) as e:
        sitting.say(str(e))
        lost = {"status": "failed", "reason": str(e)}
        sitting.store(target.name, about, job.workload, lost, failed(subject, target.name, str(e)))
        return
    _keep(sitting, target.name, about, subject, result, place)


def _by_browsers(
    sitting: _Sitting, asked: Devices, target: Browser, about: dict[str, Any], subjects: dict[str, Subject]
) -> None:
    """Serves the page, and stores what comes as it comes."""
    jobs: dict[str, Subject] = {s.job.job_id: s for s in subjects.values()}
    deadline_s = PEOPLE_S + sum(s.job.deadline_s for s in subjects.values())
    came = set()
    out = Path(tempfile.mkdtemp(prefix="came-", dir=sitting.scratch))
    folders = [Path(folder) for folder in subjects]
    for received in target.collect(folders, out, devices=asked.browsers, deadline_s=deadline_s, progress=sitting.say):
        subject = jobs[received.job_id]
        device = _safe(f"{received.device} ({received.browser}, {received.provider})")
        came.add(device)
        if received.result.status != "ok":
            reason = f"{device}: {received.result.reason}"
            lost = {"status": "failed", "reason": reason}
            sitting.store(device, about, subject.job.workload, lost, failed(subject, device, reason))
            continue
        _keep(sitting, device, about, subject, received.result, received.path)
    if not came:
        missed = NotMeasured(what=f"target {target.name}", why="no device opened the page and sent a result")
        sitting.update(not_measured=[*sitting.writer.manifest.not_measured, missed])


def _safe(name: str) -> str:
    """A name of a device, which its user chose, as part of a group's address."""
    return re.sub(r"[/\s]+", " ", name).strip()


def _keep(sitting: _Sitting, device: str, about: dict[str, Any], subject: Subject, result: Result, place: Path) -> None:
    """Stores what a device sent: as it was, and as cells and samples."""
    cells, samples = measured(subject, result, device)
    job = subject.job
    folder = sitting.writer.path / RESULTS / file_name(f"{job.workload}/{device}")
    make_own_folder(folder.parent)
    make_own_folder(folder)
    for name in (place.name, "result.sha256"):
        write_bytes(folder / name, place.with_name(name).read_bytes())
    for group, columns in samples.items():
        write_samples(sitting.writer.path, group, columns)
    agent = result.agent.model_dump(mode="json")
    facts = {**about, **result.device.model_dump(mode="json"), "agent": agent["name"]}
    facts |= {key: agent[key] for key in ("runtime", "runtime_version", "provider")}
    sitting.store(device, facts, job.workload, _told(job, result), cells)
    timed_s = sum(sum(columns["duration_ns"]) for columns in samples.values()) / 1e9
    sitting.update(timed_s=(sitting.writer.manifest.timed_s or 0.0) + timed_s)
    for cell in cells:
        sitting.say(f"{device}: {job.workload}: {_in_words(cell)}")


def _told(job: Job, result: Result) -> dict[str, Any]:
    """What a report says of a job, beside its cells."""
    return {
        "status": "ok",
        "notes": result.agent.notes,
        "memory_bytes": result.memory_bytes,
        "cpus": result.cpus,
        "clock_jumps": result.clock_jumps,
        "emulated": result.emulated,
        "sustained_s": job.sustained_s,
        "sustained": summed_up(result.sustained, job.sustained_s) if result.sustained else None,
        "decisions_differ": {f"{c.arm} at batch {c.batch_size}": c.decisions_differ for c in result.checks},
    }


def _in_words(cell: Cell) -> str:
    what = f"{cell.arm.name}, batch {cell.batch_size}"
    if cell.latency is None:
        return f"{what}: {cell.status}: {cell.reason}"
    found = next((s for s in cell.deployed_speedups if s.primary), None)
    against = "" if found is None else f", {found.value:.2f}x of {found.baseline}"
    return f"{what}: {cell.latency.item_ms:.3g} ms per item{against}"
