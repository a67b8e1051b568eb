"""What a run directory contains: the one contract between measuring (which writes it) and reporting (which reads it).

History of `SCHEMA_VERSION`:
    1  first form.
    2  cells hold the primary baseline against itself (`again`), speed-ups how small a difference that can tell
       (`resolution`), and cells what else happened meanwhile (`witnesses`).

A quantity that could not be measured is a `Unavailable` with its reason; it is never 0 and never an estimate.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2


class Record(BaseModel):
    """A frozen record; unknown keys are an error, so a typo cannot pass for a missing value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Unavailable(Record):
    """Stands where a number would, when it could not be measured."""

    unavailable: str


Quantity = float | Unavailable


class Interval(Record):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


class Speedup(Interval):
    """Ratio of stream totals, baseline over this cell; above 1 is faster than `baseline`."""

    baseline: str
    primary: bool
    resolution: float | None = None  # a ratio nearer to 1 than this share is no difference; None: nobody knows


class Warning_(Record):
    """A doubt about one result: a stable id (`DB-NOISE-01`), a sentence and a remedy."""

    id: str
    text: str
    remedy: str


class Witnesses(Record):
    """What else happened while a group was measured. Shares are of the window's time, drifts of the value before."""

    window_s: float
    waited: Quantity  # share of the time that some process waited for a core
    stolen: Quantity  # share of one core's time that the hypervisor gave to others
    switched_per_s: Quantity  # times per second that the measuring process had to give its core to another
    control_us: Quantity  # median time of the control kernel: the same arithmetic in every run
    control_drift: Quantity  # how much slower it was in the second half of the window than in the first
    clock_mhz: Quantity  # median of the looks at it
    clock_low_mhz: Quantity = Unavailable(unavailable="not recorded then")  # the lowest of them
    clock_drift: Quantity  # how much faster it was in the second half of the looks than in the first
    temperature_c: Quantity  # at the end
    governor: str  # how the clock is picked; of a GPU: what held it down, and in how many of the looks


class Decisions(Record):
    """Where the decisions of a cell come from.

    `keep_rate` is the mean share of asked decisions that ran the body (Skip), stayed in the loop (Loop, Exits);
    for Route it is k / n_experts. It is measured on the trace, reached entries only, whatever the source.
    """

    source: Literal["learned", "replay", "synthetic", "published"]
    label: str  # 'learned', 'synthetic keep=0.50', ... unique within a workload
    keep_rate: float | None = None
    requested: dict[str, float | list[float]] = Field(default_factory=dict)  # what was asked of synthetic or published
    provenance: str | None = None  # published: where the rate was published


class Flops(Record):
    """Per item of the stream (mean), 1 MAC = 2 FLOPs. Definitions: dense, required, executed, accounted of the docs."""

    dense: Quantity
    required_region: Quantity
    required_total: Quantity
    executed: Quantity
    accounted: Quantity
    accounted_rule: str | None = None  # what the paper counts, in words


class Latency(Record):
    """Wall time, device drained. Percentiles only with enough samples (64 for p90, 662 for p99), else Unavailable."""

    stream_ms: float  # median over rounds of the time of the whole stream
    item_ms: float  # stream_ms / items of the stream
    batch_p50_ms: float
    batch_p90_ms: Quantity
    batch_p99_ms: Quantity
    device_stream_ms: Quantity  # by device events; Unavailable on a CPU


class Memory(Record):
    """Peak memory, in a fresh process for a CPU."""

    peak_bytes: Quantity


class Energy(Record):
    """From real counters only."""

    item_j: Quantity
    idle_share: Quantity
    window_s: Quantity
    sensor: str | None = None


class Accuracy(Record):
    """On held-out labelled inputs; `value` in 0..1. `metric` is e.g. 'top-1 accuracy' or 'bits per byte'."""

    value: Quantity
    metric: str
    higher_is_better: bool = True
    items: int = 0


class Phases(Record):
    """Where the time of one profiled pass over the stream went, in ms (profiling itself adds time)."""

    decide_ms: float = 0.0
    gather_ms: float = 0.0
    body_ms: float = 0.0
    scatter_ms: float = 0.0
    sync_ms: float = 0.0
    head_ms: float = 0.0
    other_ms: float = 0.0


class Cell(Record):
    """One configuration and what was measured of it; one line of `cells.jsonl`."""

    schema_version: int = SCHEMA_VERSION
    cell_id: str  # unique in the run; 'arm' strategy: <group_id>/<strategy>; baseline: <group_id>/baseline:<name>
    group_id: str  # '<workload>/<decisions.label>/<device>/b<batch>/<dtype>/t<threads>'
    workload: str
    decisions: Decisions
    arm: Literal["strategy", "baseline", "control"]
    name: str  # the strategy's, the baseline's or the control's name
    primary: bool = False  # the primary baseline
    engine: str = "eager"
    form: str = "plain"
    device: str = "cpu"
    batch_size: int
    dtype: str = "float32"
    threads: int
    status: Literal["ok", "refused", "failed", "interrupted"]
    reason: str | None = None  # why refused, failed or interrupted
    stopped_by: Literal["precision", "no progress", "time limit", "interrupt"] | None = None
    rounds: int = 0
    stream_items: int = 0
    latency: Latency | None = None
    speedups: list[Speedup] = Field(default_factory=list)  # against every baseline of the group
    ideal: float | None = None  # dense FLOPs / required region FLOPs
    efficiency: float | None = None  # speed-up against the primary baseline / ideal
    flops: Flops | None = None
    bytes_touched: Quantity | None = None  # per item, an upper bound: tensor bytes read and written by operators
    operator_calls: Quantity | None = None  # per stream
    host_syncs: Quantity | None = None  # per stream
    kernel_launches: Quantity | None = None  # per stream
    params: int | None = None
    memory: Memory | None = None
    energy: Energy | None = None
    accuracy: Accuracy | None = None
    phases: Phases | None = None
    path_label: str | None = None  # what a path is counted in: 'blocks run of 17', 'stages of 3', ...
    batch_paths: list[float] = Field(default_factory=list)  # per batch id: the batch's mean path depth
    max_error: float | None = None  # output check: largest difference from the float64 reference, relative
    tolerance: float | None = None
    again: Interval | None = None  # the primary baseline against itself in the same rounds (A/A); its truth is 1
    witnesses: Witnesses | None = None  # of the group
    warnings: list[Warning_] = Field(default_factory=list)


class Claim(Record):
    """What the paper says, to be set beside what was measured."""

    metric: str
    value: float
    unit: str
    where: str  # table, figure, section
    how: Literal["counted", "predicted", "timed"]
    status: Literal["verified", "second-hand", "recalled", "reconstructed"] = "verified"
    batch_size: int | None = None
    hardware: str | None = None


class DeclaredCost(Record):
    """What is asked of somebody or something outside the machine, as the workload declares it: never measured."""

    decisions: str  # label of the decisions that `share` was counted in
    what: str  # 'human expert'
    share: float  # of the stream's items that reach it
    latency_s: float  # of one query
    cost: float  # of one query, in `unit`
    unit: str  # money, or 'MACs'


class WorkloadInfo(Record):
    """What a report says of a workload apart from its cells."""

    name: str
    title: str
    paper: str | None = None
    model: str  # 'module:function' or 'file.py:function'
    model_args: dict[str, object] = Field(default_factory=dict)
    provenance: str  # 'paper', 'authors\' code', 'reconstruction', 'own model'
    points: dict[str, int] = Field(default_factory=dict)  # {'Skip': 17}
    inputs: str  # one sentence: what the inputs were
    stream_hash: str
    stream_items: int
    weights: str | None = None  # file name, or None: untrained
    weights_sha256: str | None = None
    card: dict[str, object] = Field(default_factory=dict)  # the model card
    claims: list[Claim] = Field(default_factory=list)
    declared: list[DeclaredCost] = Field(default_factory=list)
    accuracies: dict[str, Accuracy] = Field(default_factory=dict)  # by arm name: 'dynamic' and each baseline's
    trace_hashes: dict[str, str] = Field(default_factory=dict)  # by decisions.label


class NotMeasured(Record):
    """Something a reader may miss, and why it is not there."""

    what: str
    why: str


class Manifest(Record):
    """`manifest.json`: the machine, the software and what was asked."""

    schema_version: int = SCHEMA_VERSION
    dynbench_version: str
    run_id: str
    command: list[str]  # argv, to reproduce
    spec: dict[str, object]  # the full options and workload specs
    started: str  # ISO 8601, UTC
    finished: str | None = None
    status: Literal["running", "complete", "interrupted"] = "running"
    seed: int
    hardware: dict[str, object]
    software: dict[str, object]
    git: dict[str, object]
    environment: dict[str, object]  # thread settings, clocks, load, governor
    workloads: dict[str, WorkloadInfo] = Field(default_factory=dict)
    not_measured: list[NotMeasured] = Field(default_factory=list)
    warnings: list[Warning_] = Field(default_factory=list)
    command_s: float | None = None  # wall time of the whole command so far
    timed_s: float | None = None  # of which inside timed samples


class RoundSample(Record):
    """A row of `samples/<group>.parquet`."""

    process: int  # worker process number
    round: int
    position: int  # place of the arm within the round
    arm: str  # the cell's name ('compaction', 'baseline:resnet38')
    batch_id: int
    start_ns: int
    duration_ns: int
    device_ns: int | None = None
