"""What a run directory contains: the one contract between measuring (which writes it) and reporting (which reads it).

History of `SCHEMA_VERSION`:
    1  first form.
    2  cells hold the primary baseline against itself (`again`), speed-ups how small a difference that can tell
       (`resolution`), and cells what else happened meanwhile (`witnesses`).
    3  a cell says what ran in it by its `arm`, which has a typed identity (before: `arm`, `name`, `engine`, `form`);
       samples name arms by `Arm.key`.
    4  cells say whether they are a network in its fastest way (`deployed`), compare these with each other
       (`deployed_speedups`), and list the ways that were tried (`candidates`).

A quantity that could not be measured is an `Unavailable` with its reason; it is never 0 and never an estimate.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from dynbench.names import without_micro_batches
from dynbench.unavailable import Measured, Unavailable

SCHEMA_VERSION = 4
STORED = {"stored": True}  # validation context of what is read from a file: amounts must also make sense
LEAST, MOST = 1e-30, 1e30  # nothing that is measured lies outside, and products of such amounts are finite


def _positive(value: float, info: ValidationInfo) -> float:
    if info.context == STORED and not (0 < value < math.inf):
        raise ValueError(f"a number above 0 is expected, found {value}")
    return _measurable(value, info)


def _not_negative(value: float, info: ValidationInfo) -> float:
    if info.context == STORED and not (0 <= value < math.inf):
        raise ValueError(f"a number from 0 on is expected, found {value}")
    return _measurable(value, info)


def _measurable(value: float, info: ValidationInfo) -> float:
    if info.context == STORED and value != 0 and not (LEAST <= value <= MOST):
        raise ValueError(f"a number between {LEAST:g} and {MOST:g} is expected, found {value:.3g}")
    return value


Positive = Annotated[float, AfterValidator(_positive)]
NotNegative = Annotated[float, AfterValidator(_not_negative)]
Amount = NotNegative | Unavailable
Count = Annotated[int, AfterValidator(_not_negative)]
CountFrom1 = Annotated[int, AfterValidator(_positive)]


class Record(BaseModel):
    """A frozen record; unknown keys are an error, so a typo cannot pass for a missing value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Record):
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


def _of_ratios(value: Interval, info: ValidationInfo) -> Interval:
    for end in (value.value, value.low, value.high):
        _positive(end, info)
    return value


OfRatios = Annotated[Interval, AfterValidator(_of_ratios)]


class Speedup(Interval):
    """Ratio of stream totals, baseline over this cell; above 1 is faster than `baseline`."""

    value: Positive
    low: Positive
    high: Positive
    baseline: str
    primary: bool
    resolution: NotNegative | None = None  # a ratio nearer to 1 than this share is no difference; None: unknown


class Warning_(Record):
    """A doubt about one result: a stable id (`DB-NOISE-01`), a sentence and a remedy."""

    id: str
    text: str
    remedy: str


class Witnesses(Record):
    """What else happened while a group was measured. Shares are of the window's time, drifts of the value before."""

    window_s: NotNegative
    waited: Measured  # share of the time that some process waited for a core
    stolen: Measured  # share of one core's time that the hypervisor gave to others
    switched_per_s: Measured  # times per second that the measuring process had to give its core to another
    control_us: Measured  # median time of the control kernel: the same arithmetic in every run
    control_drift: Measured  # how much slower it was in the second half of the window than in the first
    clock_mhz: Measured  # median of the looks at it
    clock_low_mhz: Measured = Unavailable(unavailable="not recorded then")  # the lowest of them
    clock_drift: Measured  # how much faster it was in the second half of the looks than in the first
    temperature_c: Measured  # at the end
    governor: str | Unavailable  # the kernel's policy for the clock; of a GPU: what throttled it, in how many readings


class Decisions(Record):
    """Where the decisions of a cell come from.

    `keep_rate` is the mean share of asked decisions that ran the body (Skip), stayed in the loop (Loop, Exits);
    for Route it is k / n_experts. It is measured on the trace, reached entries only, whatever the source.
    """

    source: Literal["learned", "replay", "synthetic", "published"]
    label: str  # 'learned', 'synthetic keep=0.50', ... unique within a workload
    keep_rate: float | None = None
    sweep: bool = False  # one of several rates that are set side by side, at one batch size
    requested: dict[str, float | list[float]] = Field(default_factory=dict)  # what was asked of synthetic or published
    provenance: str | None = None  # published: where the rate was published


class Flops(Record):
    """Per item of the stream (mean), 1 MAC = 2 FLOPs. Definitions: dense, required, executed, accounted of the docs."""

    dense: Amount
    required_region: Amount
    required_total: Amount
    executed: Amount
    accounted: Amount
    accounted_rule: str | None = None  # what the paper counts, in words


class Latency(Record):
    """Wall time, device drained. Percentiles only with enough samples (64 for p90, 662 for p99), else Unavailable."""

    stream_ms: Positive  # median over rounds of the time of the whole stream
    item_ms: Positive  # stream_ms / items of the stream
    batch_p50_ms: Positive
    batch_p90_ms: Amount
    batch_p99_ms: Amount
    device_stream_ms: Amount  # by device events; Unavailable on a CPU


class Memory(Record):
    """Peak memory, in a fresh process for a CPU."""

    peak_bytes: Amount


class Energy(Record):
    """From real counters only."""

    item_j: Amount
    idle_share: Amount
    window_s: Amount
    sensor: str | None = None
    parts_j: list[Positive] = Field(default_factory=list)  # J/item in parts of the window, one after the other


class Startup(Record):
    """What a network costs on a device before it is steady; None: it is not known there."""

    load_ms: NotNegative | None = None  # making a session of the graph
    first_run_ms: NotNegative | None = None  # the first batch
    download_ms: NotNegative | None = None  # of the graph; on a device that fetches it


class Accuracy(Record):
    """On held-out labelled inputs. `metric` is e.g. 'top-1 accuracy', 'bits per byte' or 'mean absolute error'."""

    value: Measured
    metric: str
    unit: str | None = None  # '%': the value is a share of 0 to 1; None: written before units were kept
    higher_is_better: bool = True
    items: int = 0  # that were judged

    @property
    def in_percent(self) -> bool:
        """Whether the value is a share, said in percent."""
        return self.unit == "%" or (self.unit is None and "accuracy" in self.metric)

    @property
    def share_of_items(self) -> bool:
        """Whether the value is the share of items answered right, whose sampling error follows from their number."""
        return self.in_percent and self.metric in ("top-1 accuracy", "binary accuracy", "accuracy")


class Phases(Record):
    """Where the time of one profiled pass over the stream went, in ms (profiling itself adds time)."""

    decide_ms: NotNegative = 0.0
    gather_ms: NotNegative = 0.0
    body_ms: NotNegative = 0.0
    scatter_ms: NotNegative = 0.0
    sync_ms: NotNegative = 0.0
    head_ms: NotNegative = 0.0
    other_ms: NotNegative = 0.0


WITHOUT = {
    "everything": "dense at the active count",
    "deciding": "decisions known ahead",
    "waiting": "no wait",
    "moving": "nothing moved",
}
"""What a control is called, by what is left out of it."""


class Arm(Record):
    """What runs in a cell: its identity within a group, made once, by the plan.

    Names are rendered from it, for people, and are never parsed; two arms are the same if all fields are.

    Attributes:
        kind: 'strategy': the workload's model under a strategy. 'baseline': a static network. 'control': as a strategy,
            but for one thing; or a static network in another engine than its fastest. 'opaque': a dynamic network with
            control flow of its own and no decision points.
        strategy: how decided work is executed; None: a static network, of which nothing is decided.
        baseline: name of the static or opaque network in the workload; None: it is the workload's own model that runs.
        form: how the network is written down: layout, folded batch norm, items at a time.
        engine: what executes the regions.
        control: who plays the strategy: 'host' (Python, region by region) or 'graph' (it is part of the graph).
        live: it makes its own decisions instead of replaying those of the group.
        without: of a control, the part that is left out: 'moving' (items are not gathered and put back), 'waiting' (for
            decisions), 'deciding' (gates, and waiting), or 'everything' (dense work at the number of items that each
            part is asked for). Answers may then be wrong, on purpose.
        again: the same as another arm, a second time: what differs is the resolution of the measurement.
        load: how batches are issued.
    """

    kind: Literal["strategy", "baseline", "control", "opaque"]
    strategy: str | None = None
    baseline: str | None = None
    form: str = "plain"
    engine: str = "eager"
    control: Literal["host", "graph"] = "host"
    live: bool = False
    without: Literal["everything", "deciding", "waiting", "moving"] | None = None
    again: bool = False
    load: str = "closed loop"

    @property
    def only_explains(self) -> bool:
        """It is measured for the waterfalls of other arms, and is no result of its own."""
        return self.without is not None or (self.kind == "control" and self.baseline is not None)

    @property
    def micro_batch(self) -> int | None:
        """Items that it computes at a time; None: the whole batch."""
        return without_micro_batches(self.form)[1]

    @property
    def in_whole_batches(self) -> Arm:
        """The same, called with a whole batch at once."""
        return self.model_copy(update={"form": without_micro_batches(self.form)[0]})

    @property
    def name(self) -> str:
        """What it is called among arms of one way: 'compaction', 'resnet38', 'compaction, live decisions'."""
        parts = [self.strategy or self.baseline or "", *(["live decisions"] if self.live else [])]
        parts += [WITHOUT[self.without]] if self.without else []
        return ", ".join(parts + (["again"] if self.again else []))

    @property
    def way(self) -> str:
        """Form, engine, control and load, as far as they are not the plain ones: 'folded, compile'; '' for these."""
        plain = Arm.model_fields
        values = ((n, str(getattr(self, n))) for n in ("form", "engine", "control", "load"))
        return ", ".join(value for name, value in values if value != plain[name].default)

    @property
    def title(self) -> str:
        """Name and way: 'resnet38, folded'."""
        return f"{self.name}, {self.way}" if self.way else self.name

    @property
    def key(self) -> str:
        """Unique among the arms of a group, and stable: what samples and cells are addressed by."""
        return self.title if self.kind == "strategy" else f"{self.kind}:{self.title}"


class GraphBreak(Record):
    """Why code of a region runs in Python between graphs of torch.compile."""

    region: str  # its name in the network; '' is the whole network
    reason: str


class Compiled(Record):
    """What torch.compile made of a network, region by region."""

    regions: Count
    compilations: Count  # of all of them
    most_compilations: Count  # of one
    graph_breaks: list[GraphBreak] = Field(default_factory=list)


class Candidate(Record):
    """A way of running a network that the tournament before its group tried."""

    arm: Arm
    ratio: Positive | None = None  # its time over that of the fastest; 1: the fastest; None: not timed
    reason: str | None = None  # why it was not timed


class Factor(Interval):
    """A factor by which time exceeds what the computation asked for would take; above 1 something is lost.

    Attributes:
        value: median over rounds, of paired ratios of two arms.
        name: 'surplus' (FLOPs executed over required), 'fewer_items' (time per FLOP at the items that a part is called
            with, over that of the whole batch), 'moving' (gather and scatter), 'deciding' (gates, routers, policies and
            heads), 'waiting' (for decisions, and for the host to launch what follows), 'engine' (the baseline in the
            engine of the arm, over the same in its fastest one), 'rest' (what no control tells apart).
        how: how it was measured, in words.
        share: of the arm's time, as the controls say; None: it is not a share of it.
        share_low: lower end of its interval.
        share_high: upper end.
        profile_share: of the arm's time, as the profiler's phases say; None: it was not profiled.
    """

    value: Positive
    low: Positive
    high: Positive
    name: Literal["surplus", "fewer_items", "moving", "deciding", "waiting", "engine", "rest"]
    how: str
    share: float | None = None
    share_low: float | None = None
    share_high: float | None = None
    profile_share: float | None = None


class Waterfall(Record):
    """From the ideal to the measured speed-up: `ideal / speedup` is the product of the factors' values, exactly."""

    baseline: str
    ideal: Positive
    speedup: Positive
    factors: list[Factor]  # in the order in which they are left out


class Cell(Record):
    """One configuration and what was measured of it; one line of `cells.jsonl`."""

    schema_version: int = SCHEMA_VERSION
    cell_id: str  # unique in the run: '<group_id>/<arm.key>'
    group_id: str  # '<workload>/<decisions.label>/<device>/b<batch>/<dtype>/t<threads>'
    workload: str
    decisions: Decisions
    arm: Arm
    primary: bool = False  # the primary baseline
    static_twin: bool = False  # the model without its decisions: another function of the input, by intention
    item_by_item: bool = False  # its strategy computes each item alone: what papers assume, not what is deployed
    device: str = "cpu"
    batch_size: CountFrom1
    dtype: str = "float32"
    threads: CountFrom1
    status: Literal["planned", "ok", "refused", "failed", "interrupted"]  # 'planned' is never stored
    reason: str | None = None  # why refused, failed or interrupted
    stopped_by: Literal["precision", "no progress", "time limit", "interrupt"] | None = None
    rounds: Count = 0
    stream_items: Count = 0
    latency: Latency | None = None
    speedups: list[Speedup] = Field(default_factory=list)  # against every baseline of its engine in the group
    deployed: bool = False  # the fastest way of its network at this batch size, as the tournament found
    deployed_speedups: list[Speedup] = Field(default_factory=list)  # of such a cell, against every deployed baseline
    candidates: list[Candidate] = Field(default_factory=list)  # of such a cell: what was tried, the fastest first
    ideal: Positive | None = None  # dense FLOPs / required region FLOPs
    efficiency: Positive | None = (
        None  # speed-up against the primary baseline / ideal; deployed against deployed if it has one
    )
    waterfall: Waterfall | None = None  # as written; where its controls were measured
    deployed_waterfall: Waterfall | None = None  # deployed against deployed
    energy_waterfall: Waterfall | None = None  # as written, of joules: where there is a counter
    deployed_energy_waterfall: Waterfall | None = None  # the same deployed against deployed
    flops: Flops | None = None
    bytes_touched: Amount | None = None  # per item, an upper bound: tensor bytes read and written by operators
    operator_calls: Amount | None = None  # per stream
    compiled: Compiled | None = None  # of engine 'compile'
    host_syncs: Amount | None = None  # per stream
    kernel_launches: Amount | None = None  # per stream
    params: Count | None = None
    memory: Memory | None = None
    energy: Energy | None = None
    accuracy: Accuracy | None = None
    phases: Phases | None = None
    path_label: str | None = None  # what a path is counted in: 'blocks run of 17', 'stages of 3', ...
    batch_paths: list[float] = Field(default_factory=list)  # per batch id: the batch's mean path depth
    max_error: float | None = None  # output check: largest difference from the float64 reference, relative
    tolerance: float | None = None
    again: OfRatios | None = None  # the primary baseline against itself in the same rounds (A/A); its truth is 1
    witnesses: Witnesses | None = None  # of the group
    startup: Startup | None = None  # of a cell that was measured on a device, by an agent
    own: dict[str, Measured] = Field(default_factory=dict)  # by `OwnQuantity.key`: what the user's own quantities gave
    warnings: list[Warning_] = Field(default_factory=list)


class OwnQuantity(Record):
    """What a user's own quantity says of itself; its values are in `Cell.own`.

    The fields are those of `store.quantity.Quantity`, where they are explained.
    """

    key: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    header: str = Field(min_length=1)
    name: str = Field(min_length=1)
    definition: str = Field(min_length=1)
    is_not: str = ""
    unit: str = ""
    per: str = ""
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    kind: Literal["number", "count", "ratio"] = "number"
    digits: int = Field(3, ge=1)
    exact: bool = False
    depends_on_software: bool = False
    better: Literal["up", "down"] | None = None
    places: tuple[Literal["speed", "latency", "work", "sweep", "not measured"], ...] = ()


class Claim(Record):
    """What the paper says, to be set beside what was measured."""

    metric: str
    value: float = Field(allow_inf_nan=False)
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
    share: float = Field(ge=0, allow_inf_nan=False)  # of the stream's items that reach it
    latency_s: float = Field(ge=0, allow_inf_nan=False)  # of one query
    cost: float = Field(ge=0, allow_inf_nan=False)  # of one query, in `unit`
    unit: str  # money, or 'MACs'


class Correlation(Record):
    """Spearman's rank correlation over tokens, with an interval by resampling the samples."""

    value: float
    low: float
    high: float


class Tokens(Record):
    """How a language model's computation changes from token to token, with its own decisions.

    Work is the FLOPs that decisions ask for about a token, relative to the mean token. Entropy is that of the model's
    own prediction at the token.
    """

    samples: Count
    tokens: Count  # of a sample
    spread: NotNegative  # standard deviation of work over tokens, relative to the mean; 0: every token costs the same
    by_position: list[float] = Field(default_factory=list)  # mean work at each place
    by_entropy: list[tuple[float, float]] = Field(
        default_factory=list
    )  # (entropy in bits, work), eighths of the tokens
    with_entropy: Correlation | None = None
    with_position: Correlation | None = None
    reason: str | None = None  # why there is no entropy


class Variation(Record):
    """One of several workloads that differ in an argument of their model."""

    of: str  # name of the workload as its file says
    argument: str
    value: bool | int | float | str


OWN_MODEL = "own model"  # the provenance of a model that names none


Role = Literal["positive control", "null control"]
"""What a workload is for, where its result is known beforehand; see `analysis.roles`."""


class WorkloadInfo(Record):
    """What a report says of a workload apart from its cells."""

    name: str
    title: str
    paper: str | None = None
    model: str  # 'module:function' or 'file.py:function'
    model_args: dict[str, object] = Field(default_factory=dict)
    provenance: str  # 'paper', 'authors\' code', 'reconstruction', 'own model'
    points: dict[str, int] = Field(default_factory=dict)  # {'Skip': 17}
    actions: list[str] = Field(default_factory=list)  # what these do, as predicates: ['skips', 'leaves early']
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
    quantities: list[OwnQuantity] = Field(default_factory=list)  # of the user's own
    opaque: list[str] = Field(default_factory=list)  # dynamic networks with control flow of their own, by arm name
    notes: list[str] = Field(default_factory=list)  # sentences on how the model was taken, such as a wrapper opened
    varied: Variation | None = None  # what it differs from its file in
    role: Role | None = None  # its result is known beforehand: it checks the run
    tokens: Tokens | None = None  # of a model of sequences of tokens that decides about them

    @property
    def may_be_trained(self) -> bool:
        """No file of weights is named, but the model is a user's own: its function may have loaded some."""
        return self.weights is None and self.provenance == OWN_MODEL


class NotMeasured(Record):
    """Something a reader may miss, and why it is not there."""

    what: str
    why: str


class Sitting(Record):
    """When a run was gone on with, and by what."""

    started: str  # ISO 8601, UTC
    dynbench_version: str
    git: dict[str, object]  # as `Manifest.git`


class Manifest(Record):
    """`manifest.json`: the machine, the software and what was asked."""

    schema_version: int = SCHEMA_VERSION
    dynbench_version: str
    run_id: str
    command: list[str]  # argv, to reproduce
    spec: dict[str, object]  # the full options and workload specs
    started: str  # ISO 8601, UTC
    resumed: list[Sitting] = Field(default_factory=list)  # what was not measured before was measured in these
    finished: str | None = None
    status: Literal["running", "complete", "interrupted"] = "running"
    seed: int
    hardware: dict[str, object]
    software: dict[str, object]
    git: dict[str, object]
    environment: dict[str, object]  # thread settings, clocks, load, governor
    devices: dict[str, dict[str, object]] = Field(default_factory=dict)  # by `Cell.device`, of a run on targets
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
    arm: str  # `Arm.key`
    batch_id: int
    start_ns: int  # of a target: the time that was sampled before
    duration_ns: int
    device_ns: int | None = None
