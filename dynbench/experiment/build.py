"""From a validated workload to live objects: its networks, the stream, the decision traces."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbench import devices
from dynbench.data import Dataset, load_inputs, stream
from dynbench.dynamic import Execution, Trace, TraceError, points, widest_scope
from dynbench.dynamic.items import answer_parts, called, map_items
from dynbench.dynamic.sources import keep_rate, synthetic
from dynbench.errors import UserError
from dynbench.experiment.dtypes import cast, dtype_name, input_dtype
from dynbench.experiment.networks import (
    Stream,
    build_baseline,
    build_formed,
    build_model,
    build_opaque,
    finished_by,
    prepare_network,
    to_batch,
)
from dynbench.experiment.oracle import Reference, leave_out, left_out
from dynbench.experiment.parts import Parts
from dynbench.experiment.ready import first_pass, open_wrappers
from dynbench.experiment.signature import check_call, check_pair
from dynbench.experiment.spec import Options, Workload
from dynbench.experiment.trust import ITEMS, Finding, inspect
from dynbench.graph import Right, Session
from dynbench.meters.energy import idle_power_w
from dynbench.reading import ordinary
from dynbench.store.schema import Arm, Decisions
from dynbench.strategies import Masking, PerSample, Strategy
from dynbench.strategies.checking import check_model
from dynbench.unavailable import Measured

Batch = tuple[int, Any]  # index of the first item, inputs [n, ...]: a part of a `Stream`
MAX_STREAM_ITEMS = 4096
CALIBRATION_ITEMS = 64


def sha256(file: Path) -> str:
    """Content hash of a file, hex, 16 digits."""
    return hashlib.sha256(ordinary(file).read_bytes()).hexdigest()[:16]


def stream_items(batch_sizes: list[int], least: int = 64) -> int:
    """How many items a stream has: at least `least`, and a whole number of batches at every batch size.

    Raises:
        UserError: the batch sizes have no small common multiple.
    """
    common = math.lcm(*batch_sizes)
    items = common * math.ceil(least / common)
    if items > MAX_STREAM_ITEMS:
        raise UserError(
            f"batch sizes {', '.join(map(str, batch_sizes))} have the least common multiple {common}; every batch size "
            f"divides one stream, of at most {MAX_STREAM_ITEMS} items: choose sizes that share factors"
        )
    return items


@dataclass
class Source:
    """A decision source of a workload: its label and how to make its trace."""

    decisions: Decisions

    @property
    def sweep(self) -> bool:
        """Whether it belongs to the keep-rate sweep."""
        return self.decisions.sweep


@dataclass
class Prepared:
    """A workload ready to be measured.

    Attributes:
        spec: the workload.
        options: of the run.
        parts: the strategies, engines and load that it is measured with.
        model: as it was written.
        baselines: static networks by name, in their forms.
        opaque: dynamic networks without decision points, by name.
        notes: sentences on how the model was taken, for a reader of its results.
        device: of everything.
        dtype: of floating-point inputs.
        inputs: the stream [items, ...].
        dataset: the stream before it became a tensor.
        evaluation: held-out inputs with labels; None: accuracy is not measured.
        calibration: inputs that are not in the stream, to see what is usually decided; None: there are too few.
        sources: where decisions come from, the keep-rate sweep last.
        batch_sizes: in items.
        idle_w: power of the device doing nothing.
        right_answers: by decisions' label and batch size.
        counted: executed work, by what it depends on.
        sessions: graphs that were proved, by what they depend on.
        right_of_graphs: what they were compared with, by baseline and form; None: the dynamic network.
        rates: by decisions' label: how often each Skip runs its body.
    """

    spec: Workload
    options: Options
    parts: Parts
    model: nn.Module
    baselines: dict[str, nn.Module]
    opaque: dict[str, nn.Module]
    notes: list[str]
    device: torch.device
    dtype: torch.dtype
    inputs: Stream
    dataset: Dataset
    evaluation: Dataset | None
    calibration: Stream | None
    sources: list[Source]
    batch_sizes: list[int]
    idle_w: Measured
    right_answers: dict[tuple[str, int], Reference] = field(default_factory=dict)
    counted: dict[Hashable, Any] = field(default_factory=dict)
    sessions: dict[Hashable, Session] = field(default_factory=dict)
    right_of_graphs: dict[Hashable, Right] = field(default_factory=dict)
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    _findings: dict[str, Finding | None] = field(default_factory=dict)
    _traces: dict[tuple[str, int], Trace] = field(default_factory=dict)
    _networks: dict[tuple[str | None, str, str], nn.Module] = field(default_factory=dict)
    _formed: dict[tuple[str | None, str], nn.Module] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """Number of items in the stream."""
        return len(self.inputs)

    @property
    def stream_hash(self) -> str:
        """Content hash of the stream."""
        return self.dataset.content_hash

    @property
    def batch_scope(self) -> bool:
        """Whether decisions depend on who is in the batch."""
        return widest_scope(self.model) == "batch"

    @cached_property
    def dtype_name(self) -> str:
        """The types of the model's parameters."""
        return dtype_name(self.model)

    @cached_property
    def finding(self) -> Finding | None:
        """Why the network has no right answer; None: it has one. To be asked for in inference mode."""
        return self._inspect(self.model)

    def finding_about(self, opaque: str) -> Finding | None:
        """The same of an opaque network, in that part of its answer that is compared."""
        if opaque not in self._findings:
            net, few = self.opaque[opaque], self.inputs[: min(self.items, ITEMS)]
            described = next(o for o in self.spec.opaque_networks if o.name == opaque)
            if described.same_answer_as is not None:
                right = answer_parts(Execution(Masking()).run(self.model, few), len(few))[0]
                theirs = answer_parts(called(net, few), len(few))[0]
                leave_out(net, frozenset(list(theirs)[len(right) :]))
            self._findings[opaque] = self._inspect(net)
        return self._findings[opaque]

    def _inspect(self, net: nn.Module) -> Finding | None:
        n = max(min(ITEMS, self.items // 2), 1)
        x, others = (map_items(lambda t, i=i: t[i : i + n], self.inputs) for i in (0, min(n, self.items - n)))
        return inspect(net, x, others)

    def batches(self, size: int) -> list[Batch]:
        """The stream cut into batches: (index of the first item, inputs)."""
        return [(i, self.inputs[i : i + size]) for i in range(0, self.items, size)]

    def release(self) -> None:
        """Forgets what can be made again and takes memory: networks that engines prepared, sessions, answers."""
        for made in (
            self._networks,
            self._formed,
            self.sessions,
            self.counted,
            self.right_answers,
            self.right_of_graphs,
        ):
            made.clear()

    def network(self, arm: Arm) -> nn.Module:
        """What an arm runs, prepared by its engine; made once.

        Raises:
            CannotPrepare: the engine cannot prepare it.
            UserError: it cannot be brought into its form.
        """
        key = (arm.baseline, arm.form, arm.engine)
        if key not in self._networks:
            written = self.as_written(arm)
            x = self.batches(min(self.batch_sizes))[0][1]
            self._networks[key] = prepare_network(written, self.parts.engine(arm.engine), x)
        return self._networks[key]

    def as_written(self, arm: Arm) -> nn.Module:
        """The same before any engine prepared it.

        Raises:
            UserError: it cannot be brought into its form.
        """
        key = (arm.baseline, arm.form)
        if arm.baseline is None:
            if key not in self._formed:
                self._formed[key] = build_formed(self.model, arm.form, self.spec, self.inputs[:1])
            return self._formed[key]
        if arm.kind == "opaque":
            return self.opaque[arm.baseline]
        described = next((b for b in self.spec.baselines if b.name == arm.baseline), self.spec.primary)
        if arm.form == described.form:
            return self.baselines[arm.baseline]
        if key not in self._formed:
            other = described.model_copy(update={"form": arm.form})
            self._formed[key] = build_baseline(other, self.spec, self.model, self.inputs[:1])
        return self._formed[key]

    def strategy(self, name: str | None) -> Strategy:
        """A new instance of a strategy; None: of that which static networks run under."""
        return self.parts.strategy(name)

    def trace(self, source: Source, batch_size: int) -> Trace:
        """The decisions of a source for the whole stream, on the device.

        Raises:
            UserError: a trace file that cannot be replayed on this stream.
        """
        key = (source.decisions.label, batch_size if self.batch_scope else 0)
        if key not in self._traces:
            trace = self._make_trace(source, batch_size)
            trace.stream_hash = self.stream_hash
            self._traces[key] = trace.to(self.device)
        return self._traces[key]

    def _make_trace(self, source: Source, batch_size: int) -> Trace:
        d = source.decisions
        if d.source == "learned":
            return self.record(PerSample(), batch_size)
        if d.source == "replay":
            try:
                return Trace.load(Path(d.label.removeprefix("replay:")), self.stream_hash)
            except TraceError as e:
                raise UserError(str(e)) from e
        return self.made_up(source, self.options.seed, batch_size)

    def made_up(self, source: Source, seed: int, batch_size: int) -> Trace:
        """Decisions of a synthetic or published source for the whole stream, drawn with a seed.

        Raises:
            UserError: they cannot be drawn for this model.
        """
        d = source.decisions
        tables = self.record(Masking(), batch_size)
        table = self.spec.decisions.published if d.source == "published" else self.spec.decisions.synthetic
        assert table is not None
        asked = {**table.model_dump(exclude={"provenance"}), **d.requested}
        try:
            return synthetic(tables, self.model, **asked, seed=seed)
        except (ValueError, TraceError) as e:
            raise UserError(f"{self.spec.file}: decisions.{d.source}: {e}") from e

    @torch.inference_mode()
    def record(self, strategy: Strategy, batch_size: int) -> Trace:
        """Runs the stream and keeps the model's own decisions."""
        ex = Execution(strategy, record=True)
        for start, x in self.batches(batch_size):
            ex.run(self.model, x, start=start, items=self.items)
        assert ex.trace is not None
        return ex.trace

    def decisions(self, source: Source, batch_size: int) -> Decisions:
        """The source with the keep-rate its trace really has."""
        rate = keep_rate(self.trace(source, batch_size), self.model)
        return source.decisions.model_copy(update={"keep_rate": rate})


def sources_of(spec: Workload, options: Options) -> list[Source]:
    """The decision sources to measure, the keep-rate sweep last."""
    if spec.model_kind == "opaque" and (options.strategies or options.decisions not in (None, ["learned"])):
        raise UserError(f"{spec.file}: an opaque model decides for itself: leave out --strategy and --decisions")
    found = []
    for name in options.decisions or spec.run.decisions:
        if name.startswith("replay:"):
            found.append(Source(Decisions(source="replay", label=name)))
        elif name == "learned":
            found.append(Source(Decisions(source="learned", label="learned")))
        elif name == "synthetic":
            found.append(Source(Decisions(source="synthetic", label="synthetic")))
        elif name == "published":
            if spec.decisions.published is None:
                raise UserError(f"{spec.file}: there is no [decisions.published] table, so no published decisions")
            origin = spec.decisions.published.provenance
            found.append(Source(Decisions(source="published", label="published", provenance=origin)))
        else:
            raise UserError(
                f"{spec.file}: run.decisions: {name!r} is none of learned, synthetic, published, replay:PATH"
            )
    if options.decisions is None:
        for rate in spec.run.keep_rates:
            label = f"synthetic keep={rate:.2f}"
            found.append(Source(Decisions(source="synthetic", label=label, requested={"keep_rate": rate}, sweep=True)))
    return found


def prepare(spec: Workload, options: Options, chosen: Dataset | None = None) -> Prepared:
    """Builds everything a workload needs.

    Args:
        spec: the workload.
        options: of the run.
        chosen: its stream, where that is known already; then there is nothing to measure accuracy on.

    Raises:
        UserError: anything in the workload that cannot be built, in one sentence.
    """
    device = torch.device(options.device)
    batch_sizes = list(options.batch_sizes or spec.run.batch_sizes)
    items = stream_items(batch_sizes, spec.run.stream_samples)
    dataset = chosen
    if dataset is None:
        dataset = load_inputs(
            inputs_name(spec), "test", data_dir=options.data_dir, limit=None, seed=options.seed, **spec.inputs.options
        )
        if len(dataset) == 0:
            raise UserError(f"{spec.file}: inputs {spec.inputs.name!r} has no items")
    count = min(spec.run.accuracy_items, len(dataset))
    judged = chosen is None and dataset.labels is not None and count > 0
    evaluation = stream(dataset, count, options.seed) if judged else None
    parts = Parts.of(spec, options)
    measured = chosen or stream(dataset, items, options.seed)
    finish = finished_by(measured[: min(batch_sizes)].inputs)
    model, notes = open_wrappers(build_model(spec, spec.folder, finish))
    try:
        points(model)
    except ValueError as e:
        raise UserError(f"{spec.model}: {e}") from e
    model.to(device)
    if options.dtype is not None:
        cast(model, getattr(torch, options.dtype))
    dtype = input_dtype(model)
    calibration = None
    if chosen is None and len(dataset) >= items + CALIBRATION_ITEMS:
        others = stream(dataset, items + CALIBRATION_ITEMS, options.seed)[items:]
        calibration = to_batch(others.inputs, device, dtype)
    inputs = to_batch(measured.inputs, device, dtype)
    check_pair(model, measured, spec.inputs.name)
    check_call(model, inputs, spec.model)
    some = map_items(Tensor.clone, inputs)  # a model may write into its input
    first_pass(model, some[: min(batch_sizes)])
    check_model(model, some)
    baselines = {b.name: build_baseline(b, spec, model, inputs[:1]) for b in spec.baselines or [spec.primary]}
    return Prepared(
        spec=spec,
        options=options,
        parts=parts,
        model=model,
        baselines=baselines,
        opaque={o.name: build_opaque(o, spec, model, inputs[:1]) for o in spec.opaque_networks},
        notes=notes + _not_compared(model, inputs),
        device=device,
        dtype=dtype,
        inputs=inputs,
        dataset=measured,
        evaluation=evaluation,
        calibration=calibration,
        sources=sources_of(spec, options),
        batch_sizes=batch_sizes,
        idle_w=idle_power_w(devices.device(options.device)),
    )


@torch.inference_mode()
def _not_compared(model: nn.Module, x: Stream) -> list[str]:
    """A sentence on what of the answer to a batch belongs to no item of it; none where all does."""
    try:
        _, of_batch = answer_parts(Execution(Masking()).run(model, map_items(Tensor.clone, x)), len(x))
    except Exception:  # noqa: BLE001 (the passes that count say what is wrong)
        return []
    of_batch = [*of_batch, *sorted(left_out(model, x))]
    if not of_batch:
        return []
    named = ", ".join(of_batch)
    return [f"Of the answer, entry {named} belongs to the whole batch and is not compared between strategies."]


def inputs_name(spec: Workload) -> str:
    """The name for `load_inputs`; a relative path to a user's own file starts at the workload's folder."""
    file, colon, function = spec.inputs.name.rpartition(":")
    return f"{spec.folder / file}:{function}" if colon and file.endswith(".py") else spec.inputs.name
