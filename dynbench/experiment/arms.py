"""Arms that run: a network, prepared by its engine, under a strategy. Every arm is called in the same way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dynbench.devices.base import Device
from dynbench.dynamic import Execution, Profile, Trace
from dynbench.dynamic.items import first
from dynbench.experiment.alike import joined
from dynbench.experiment.build import Batch, Prepared, Source
from dynbench.experiment.dtypes import cast
from dynbench.experiment.graphs import session
from dynbench.experiment.networks import (
    Stream,
    build_baseline,
    build_formed,
    build_model,
    build_opaque,
    finished_by,
    prepare_network,
)
from dynbench.experiment.parts import Parts
from dynbench.experiment.ready import first_pass, open_wrappers
from dynbench.experiment.spec import Options, Workload
from dynbench.graph import Feeds, Session
from dynbench.meters.latency import Timing
from dynbench.store.schema import Arm, Cell
from dynbench.strategies import Strategy
from dynbench.strategies.controls import Without, control, filled_up


@dataclass
class Call:
    """Calls a network under a strategy; static networks too, so that what a call costs is the same for all arms.

    Attributes:
        network: what is called.
        execution: the strategy and the decisions it replays.
        items: of the stream.
    """

    network: nn.Module
    execution: Execution
    items: int

    def __call__(self, start: int, x: Stream) -> object:
        """The answer to the batch x [n, ...], whose first item has the index `start` in the stream."""
        return self.execution.run(self.network, x, start=start, items=self.items)

    def profiled(self, profile: Profile, network: nn.Module | None = None) -> Call:
        """The same call with a profile of its phases; of another network, if one is given."""
        return Call(network or self.network, self.execution.profiled(profile), self.items)


@dataclass
class GraphCall:
    """Calls a network that is one graph. What a session takes is made when a batch is called for the first time.

    Attributes:
        network: that the graph was made of.
        session: of the graph.
        replay: decisions that are inputs of the graph; None: it makes its own, or has none.
        items: of the stream.
        micro_batch: items that the session takes at a time; None: a whole batch.
    """

    network: nn.Module
    session: Session
    replay: Trace | None
    items: int
    micro_batch: int | None = None
    _feeds: dict[tuple[int, int], list[Feeds]] = field(default_factory=dict)

    def feeds(self, start: int, x: Tensor) -> list[Feeds]:
        """What the session takes, one after the other, for the batch x [n, ...], whose first item is the `start`-th."""
        key = (start, x.data_ptr())
        if key not in self._feeds:
            self._feeds[key] = [self.session.feeds(part, self.replay, i) for i, part in self._parts(start, x)]
        return self._feeds[key]

    def __call__(self, start: int, x: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the answer to the batch x [n, ...]."""
        return _joined([self.session.answer(feeds) for feeds in self.feeds(start, x)])

    def decided(self, start: int, x: Tensor) -> tuple[tuple[Tensor, ...], Trace]:
        """The answer of a graph that decides by itself where it also says what it decided, and that, for this batch."""
        passes = [self.session.run(part) for _, part in self._parts(start, x)]
        return _joined([answer for answer, _ in passes]), joined([said for _, said in passes])

    def _parts(self, start: int, x: Tensor) -> list[tuple[int, Tensor]]:
        size = self.micro_batch or len(x)
        return [(start + i, x[i : i + size]) for i in range(0, len(x), size)]


def _joined(answers: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """Answers of parts of a batch as the answer to all of it."""
    return tuple(answers[0]) if len(answers) == 1 else tuple(torch.cat(parts) for parts in zip(*answers, strict=True))


@dataclass
class RunningArm:
    """One arm of a group while it is measured.

    Attributes:
        cell: as planned; its `arm` is the identity.
        call: `(index of the first item, inputs [n, ...]) -> answer`.
        strategy: that it runs under.
        as_written: the network before an engine prepared it.
        batches: of the stream.
        device: where it runs.
        written: it is one of the arms that were planned: as written, or in the engine that was asked for.
        rounds: timings of every batch, round by round.
        pass_s: about what a pass over the stream takes, from warming up.
        stopped_by: why its rounds ended.
        failed: why it is not measured any further.
    """

    cell: Cell
    call: Call | GraphCall
    strategy: Strategy
    as_written: nn.Module
    batches: list[Batch]
    device: Device
    written: bool = True
    rounds: list[list[Timing]] = field(default_factory=list)
    pass_s: float = 0.0
    stopped_by: str = "time limit"
    failed: str | None = None

    @property
    def arm(self) -> Arm:
        """Its identity."""
        return self.cell.arm

    @property
    def model(self) -> nn.Module:
        """The network that is called."""
        return self.call.network

    @property
    def items(self) -> int:
        """Of the stream."""
        return self.call.items

    def totals_ns(self) -> np.ndarray:
        """[rounds] times of the whole stream."""
        return np.array([sum(t.duration_ns for t in r) for r in self.rounds], dtype=np.int64)


def running_arm(p: Prepared, source: Source, cell: Cell, device: Device) -> RunningArm:
    """An arm of a prepared workload, ready to be called.

    Raises:
        CannotPrepare: its engine cannot prepare the network.
        CannotTrace: it cannot be a graph, or the graph answers otherwise.
        UserError: it cannot be brought into its form.
    """
    arm, batch_size = cell.arm, cell.batch_size
    replay = None if arm.live or arm.baseline is not None else p.trace(source, batch_size)
    strategy = p.strategy(arm.strategy)
    as_written = p.as_written(arm.in_whole_batches if arm.control == "graph" else arm)
    call: Call | GraphCall
    if arm.control == "graph":
        call = GraphCall(as_written, session(p, source, arm, batch_size), replay, p.items, arm.micro_batch)
    elif arm.without is not None:
        assert arm.strategy is not None and replay is not None
        if p.parts.strategies[arm.strategy].fixed_work:  # it comes to points that no item of the stream reached
            replay = filled_up(replay, p.record(strategy, batch_size))
        call = Call(p.network(arm), Without(control(arm.strategy, arm.without), replay=replay), p.items)
    else:
        call = Call(p.network(arm), Execution(strategy, replay=replay), p.items)
    return RunningArm(cell, call, strategy, as_written, p.batches(batch_size), device)


def runnable(spec: Workload, options: Options, arm: Arm, inputs: Stream, trace: Trace | None, items: int) -> Call:
    """An arm built from its description alone, in a process that has prepared nothing.

    Args:
        spec: the workload.
        options: of the run.
        arm: which.
        inputs: one batch [n, ...], on the device and in the dtype of the run.
        trace: the decisions to replay; None: the model's own.
        items: of the stream.

    Raises:
        UserError: something of it cannot be built.
        CannotPrepare: its engine cannot prepare the network.
    """
    parts = Parts.of(spec, options)
    model, _ = open_wrappers(build_model(spec, spec.folder, finished_by(inputs)))
    model.to(first(inputs).device)
    if options.dtype is not None:
        cast(model, getattr(torch, options.dtype))
    first_pass(model, inputs[:1])
    if arm.kind == "opaque":
        opaque = next(o for o in spec.opaque_networks if o.name == arm.baseline)
        model = build_opaque(opaque, spec, model, inputs[:1])
    elif arm.baseline is not None:
        described = next((b for b in spec.baselines if b.name == arm.baseline), spec.primary)
        described = described.model_copy(update={"form": arm.form})
        model = build_baseline(described, spec, model, inputs[:1])
    else:
        model = build_formed(model, arm.form, spec, inputs[:1])
    network = prepare_network(model, parts.engine(arm.engine), inputs)
    replay = None if arm.live or arm.baseline is not None else trace
    return Call(network, Execution(parts.strategy(arm.strategy), replay=replay), items)
