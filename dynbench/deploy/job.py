"""What is pushed to a device, a job, and what comes back, a result. Every agent and every target speaks these two.

A job is a folder: graphs for any machine, inputs and expected arrays of a bundle as plain files, and `job.json`. Agents
read them without torch, pydantic or zip files. A result is `result.json`, and its hash in `result.sha256` beside it is
the proof that the agent came to its end.
"""

from __future__ import annotations

import io
import re
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from dynbench.deploy.bundle import EXPECTED, INPUTS, Decided, Manifest, read, sha256
from dynbench.errors import UserError
from dynbench.files import make_folder, make_own_folder, write_bytes
from dynbench.reading import read_json
from dynbench.store.jsonable import first_fault

SCHEMA_VERSION = 1
JOB, RESULT, RESULT_SHA256 = "job.json", "result.json", "result.sha256"
MOST_RESULT_BYTES = 8 << 20
ID = r"^[0-9a-f]{32}$"
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)?")

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Input(_Record):
    """The stream [items, ...]."""

    name: str
    file: str
    dtype: str
    item_shape: list[int]
    items: PositiveInt


class Graphs(_Record):
    """Files of one network: for any number of items, and where there is one for exactly one item."""

    any: str
    single: str | None = None


class Answer(_Record):
    """An output, and the array [items, ...] that is right."""

    output: str
    file: str


class Decision(Decided):
    """The decisions of one point, with the arrays that are right."""

    expected: str
    reached: str


class GivenArray(_Record):
    """A further input of a graph: of each item so many rows of an array [items * rows, ...]."""

    input: str
    file: str
    rows: PositiveInt = 1


class JobArm(_Record):
    """What is measured: a network of the bundle.

    Attributes:
        name: unique in the job.
        network: of the bundle.
        graphs: its files.
        answers: what is right.
        decisions: that come out, and what is right.
        given: what goes in beside the stream.
        compared: False: its answers are wrong on purpose.
    """

    name: Name
    network: str
    graphs: Graphs
    answers: list[Answer] = Field(min_length=1)
    decisions: list[Decision]
    given: list[GivenArray] = Field(default_factory=list)
    compared: bool = True


class Timing(_Record):
    """How an agent measures; the rest of a job follows from the bundle."""

    batch_sizes: list[PositiveInt] = Field(default=[1], min_length=1)
    threads: PositiveInt = 1
    cpus: list[NonNegativeInt] | None = None
    seed: NonNegativeInt = 0
    warm_up_s: Seconds = 0.5
    rounds_min: PositiveInt = 5
    time_limit_s: Seconds = 20.0
    precision: PositiveFloat = 0.02
    sustained_s: Seconds = 0.0
    max_temperature_c: float | None = None
    cool_down_s: Seconds = 120.0
    deadline_s: PositiveFloat = 300.0
    emulated: bool = False
    sensors: list[str] | None = None


class SplitCut(_Record):
    """An arm that is the first part of a network; `sends`: outputs that cross, none where it is all of it."""

    arm: Name
    sends: list[str]


class Split(_Record):
    """Requests to the machine that has the other parts; `host`: None is the one that the device was reached from."""

    host: str | None = None
    port: Annotated[int, Field(gt=0, le=65535)]
    secret: Annotated[str, Field(pattern=ID)]
    requests: PositiveInt
    cuts: list[SplitCut] = Field(min_length=1)


class Job(Timing):
    """`job.json`."""

    schema_version: Literal[1] = 1
    job_id: Annotated[str, Field(pattern=ID)]
    workload: str
    title: str
    input: Input
    tolerance: PositiveFloat
    arms: list[JobArm] = Field(min_length=1)
    split: Split | None = None
    sha256: dict[str, str]

    @model_validator(mode="after")
    def _files_are_listed(self) -> Job:
        named = {self.input.file}
        for arm in self.arms:
            named |= {arm.graphs.any, *([arm.graphs.single] if arm.graphs.single else [])}
            named |= {a.file for a in arm.answers} | {f for d in arm.decisions for f in (d.expected, d.reached)}
            named |= {g.file for g in arm.given}
        if missing := sorted(named - self.sha256.keys()):
            raise ValueError(f"{missing[0]} has no sha256")
        if odd := sorted(name for name in self.sha256 if not _FILE.fullmatch(name)):
            raise ValueError(f"{odd[0]!r} is no name of a file of a job")
        return self


class AgentFacts(_Record):
    """What measured."""

    name: Literal["python", "native", "browser"]
    version: Name
    runtime: Name
    runtime_version: Name
    provider: Name
    notes: list[Text] = Field(default_factory=list, max_length=200)


class DeviceFacts(_Record):
    """Where it measured; null: it cannot be found out there."""

    name: Name
    architecture: Name
    cpu: Text | None = None
    cores: PositiveInt | None = None
    memory_bytes: NonNegativeFloat | None = None
    os: Text
    browser: Text | None = None


class Check(_Record):
    """Answers and decisions of an arm at a batch size, against the expected ones."""

    arm: Name
    batch_size: PositiveInt
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["nan"]
    decisions: NonNegativeInt
    decisions_differ: NonNegativeInt


class ArmResult(_Record):
    """Times of an arm at a batch size. `rounds`: of each round the ns of every batch; `reason`: why there are none."""

    name: Name
    batch_size: PositiveInt
    reason: Text | None = None
    load_ms: Seconds | None = None
    first_run_ms: Seconds | None = None
    download_ms: Seconds | None = None
    rounds: list[list[PositiveInt]]
    positions: list[NonNegativeInt]

    @model_validator(mode="after")
    def _rounds_are_alike(self) -> ArmResult:
        if len(self.positions) != len(self.rounds):
            raise ValueError(f"{len(self.rounds)} rounds, but {len(self.positions)} positions")
        if len({len(r) for r in self.rounds}) > 1 or [] in self.rounds:
            raise ValueError("rounds have different numbers of batches, or none")
        return self


class Sustained(_Record):
    """One second of sustained load."""

    arm: Name
    second: NonNegativeInt
    items: NonNegativeInt
    ns: NonNegativeInt
    temperature_c: float | None = None


class SplitResult(_Record):
    """Requests for a cut: ns of each, of its part on the device and elsewhere, and of moving the same bytes alone."""

    arm: Name
    total_ns: list[PositiveInt] = Field(min_length=1)
    device_ns: list[NonNegativeInt]
    cloud_ns: list[NonNegativeInt]
    transfer_ns: list[NonNegativeInt]

    @model_validator(mode="after")
    def _alike(self) -> SplitResult:
        if {len(self.device_ns), len(self.cloud_ns), len(self.transfer_ns)} != {len(self.total_ns)}:
            raise ValueError("numbers of requests differ")
        return self


class Result(_Record):
    """`result.json`."""

    schema_version: Literal[1] = 1
    job_id: Annotated[str, Field(pattern=ID)]
    status: Literal["ok", "failed"]
    reason: Text | None = None
    agent: AgentFacts
    device: DeviceFacts
    emulated: bool
    threads: PositiveInt
    cpus: list[NonNegativeInt] | None = None
    started_unix_s: Seconds
    ended_unix_s: Seconds
    clock_jumps: NonNegativeInt
    stopped_by: Literal["precision", "time limit", "deadline", "rounds"]
    checks: list[Check]
    arms: list[ArmResult]
    sustained: list[Sustained] | None = None
    split: list[SplitResult] | None = None
    memory_bytes: NonNegativeFloat | None = None
    readings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("readings")
    @classmethod
    def _few(cls, readings: dict[str, Any]) -> dict[str, Any]:
        if len(readings) > 32:
            raise ValueError("more than 32 readings")
        return readings

    @model_validator(mode="after")
    def _says_why(self) -> Result:
        if self.status == "failed" and not self.reason:
            raise ValueError("it failed, and no reason is given")
        if self.emulated and any(arm.rounds for arm in self.arms):
            raise ValueError("it was emulated, and holds times")
        return self

    def of(self, job: Job) -> Result:
        """This result, if it is one of that job.

        Raises:
            ValueError: it is of another job, or of arms, batch sizes or numbers of batches that the job does not have.
        """
        if self.job_id != job.job_id:
            raise ValueError("it is a result of another job")
        cuts = {cut.arm for cut in job.split.cuts} if job.split else set()
        if unknown := [row.arm for row in self.split or [] if row.arm not in cuts]:
            raise ValueError(f"the job has no cut {unknown[0]!r}")
        known = {(arm.name, size) for arm in job.arms for size in job.batch_sizes}
        named = [*((c.arm, c.batch_size) for c in self.checks), *((a.name, a.batch_size) for a in self.arms)]
        if others := [pair for pair in named if pair not in known]:
            raise ValueError(f"the job has no arm {others[0][0]!r} at batch {others[0][1]}")
        if len({(a.name, a.batch_size) for a in self.arms}) < len(self.arms):
            raise ValueError("an arm is there twice")
        for arm in self.arms:
            if arm.rounds and len(arm.rounds[0]) != job.input.items // arm.batch_size:
                raise ValueError(f"rounds of {arm.name!r} at batch {arm.batch_size} do not cover the stream")
        return self


def read_job(folder: Path) -> Job:
    """The job in a folder.

    Raises:
        UserError: there is none, or it is malformed.
    """
    try:
        return Job.model_validate(read_json(folder / JOB))
    except ValidationError as e:
        raise UserError(f"{folder / JOB} is no job: {first_fault(e)}") from e


KNOWN_AHEAD = "dynamic, decisions known ahead"  # name of the arm that does not decide


def again(name: str) -> str:
    """What the arm is called that runs a network of another arm a second time."""
    return f"{name}, again"


def write_job(bundle: Path, folder: Path, timing: Timing, *, twice: str | None = None, controls: bool = False) -> Job:
    """Makes a job of a bundle.

    Args:
        bundle: its folder.
        folder: where the job is written; it is made.
        timing: how it is to be measured.
        twice: name of a network that runs a second time: how it differs from itself is what can be told apart.
        controls: measure those of the bundle, too.

    Raises:
        UserError: the bundle is missing or was changed, its decisions depend on who is in the batch and the batch sizes
            do not suit that, or the folder cannot be written.
    """
    manifest, files = read(bundle)
    if manifest.batch_scope and timing.batch_sizes != [manifest.items]:
        raise UserError(
            f"{manifest.workload}: decisions depend on who is in the batch, so a device can check batches of "
            f"{manifest.items} only: --batch {manifest.items}"
        )
    job_files = {INPUTS: files[INPUTS]}
    arms = _arms(manifest, files, job_files)
    if controls and manifest.controls:
        arms.append(_known_ahead(manifest, files, job_files, arms))
    arms += [arm.model_copy(update={"name": again(arm.name)}) for arm in arms if arm.name == twice]
    return put_job(
        folder,
        job_files,
        timing,
        workload=manifest.workload,
        title=manifest.title,
        input=Input(
            name=manifest.input_name,
            file=INPUTS,
            dtype=manifest.input_dtype,
            item_shape=manifest.input_item_shape,
            items=manifest.items,
        ),
        tolerance=manifest.tolerance,
        arms=arms,
    )


def put_job(folder: Path, files: dict[str, bytes], timing: Timing, **fields: Any) -> Job:
    """Writes a job.

    Args:
        folder: where; it is made.
        files: their content, by name in the folder.
        timing: how it is to be measured.
        fields: of `Job`, all but its identity and its hashes.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(folder)
    make_own_folder(folder / "expected")
    for name, content in files.items():
        write_bytes(folder / name, content)
    hashes = {name: sha256(content) for name, content in files.items()}
    job = Job(**timing.model_dump(), job_id=secrets.token_hex(16), sha256=hashes, **fields)
    write_bytes(folder / JOB, (job.model_dump_json(indent=1) + "\n").encode())
    return job


def _arms(manifest: Manifest, files: dict[str, bytes], job_files: dict[str, bytes]) -> list[JobArm]:
    """An arm for each network; the files that they name are added to `job_files`."""
    arrays = np.load(io.BytesIO(files[EXPECTED]), allow_pickle=False)

    def put(key: str) -> str:
        out = io.BytesIO()
        np.save(out, arrays[key], allow_pickle=False)
        name = f"expected/{sum(n.startswith('expected/') for n in job_files):03d}.npy"
        job_files[name] = out.getvalue()
        return name

    arms = []
    portable = [graph for graph in manifest.graphs if graph.optimised_for is None]
    for network in dict.fromkeys(graph.network for graph in portable):
        graphs = [graph for graph in portable if graph.network == network]
        job_files |= {graph.file: files[graph.file] for graph in graphs}
        general = next(graph for graph in graphs if not graph.single)
        arms.append(
            JobArm(
                name=network,
                network=network,
                graphs=Graphs(any=general.file, single=next((graph.file for graph in graphs if graph.single), None)),
                answers=[Answer(output=output, file=put(f"{network}/{output}")) for output in general.answers],
                decisions=[
                    Decision(**d.model_dump(), expected=put(f"decision/{d.label}"), reached=put(f"reached/{d.label}"))
                    for d in general.decisions
                ],
            )
        )
    return arms


def _known_ahead(
    manifest: Manifest, files: dict[str, bytes], job_files: dict[str, bytes], arms: list[JobArm]
) -> JobArm:
    """The dynamic network that gets the decisions which it would make: arrays of its own arm go in."""
    dynamic = next(arm for arm in arms if arm.network == "dynamic")
    arrays = {d.label: d.expected for d in dynamic.decisions}
    right = {a.output: a.file for a in dynamic.answers}
    job_files |= {control.file: files[control.file] for control in manifest.controls}
    general = next(control for control in manifest.controls if not control.single)
    return JobArm(
        name=KNOWN_AHEAD,
        network=KNOWN_AHEAD,
        graphs=Graphs(any=general.file, single=next((c.file for c in manifest.controls if c.single), None)),
        answers=[Answer(output=output, file=right[output]) for output in general.answers],
        decisions=[],
        given=[GivenArray(input=g.input, file=arrays[g.label], rows=g.rows) for g in general.given],
        compared=all(control.alike for control in manifest.controls),
    )
