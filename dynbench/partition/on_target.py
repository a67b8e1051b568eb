"""A network cut between a device and this machine, both measured where they are, over the link that lies between.

Three things are measured alone: the first part on the device by its agent, the second part here by the same agent, and
moving as many bytes there and back without computing. Their sum is predicted, as by Kang et al. (Neurosurgeon, ASPLOS
2017), and compared with whole requests from end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynbench.analysis.statistics import median_interval
from dynbench.data import load_inputs, stream
from dynbench.deploy.job import Result, Split, SplitCut, Timing
from dynbench.deploy.targets.find import open_target
from dynbench.deploy.targets.local import Local
from dynbench.deploy.targets.profile import DeviceProfile, Reach
from dynbench.errors import UserError
from dynbench.experiment.build import inputs_name
from dynbench.experiment.spec import load_spec
from dynbench.partition.cut_server import CutServer
from dynbench.partition.half import OWN, Half, ModelSource
from dynbench.partition.parts import cloud_job, cut_at, device_job
from dynbench.partition.records import Settings
from dynbench.partition.split import in_words, source_of
from dynbench.scratch import scratch
from dynbench.store.schema import Interval

ITEMS = 8  # of the stream: every cut's tensors of each are in the job
REQUESTS = 50  # of each cut, where none are asked for
DEADLINE_S = 600.0
KINDS = ("local", "ssh")  # from which a device can open a connection to this machine


@dataclass(frozen=True)
class Where:
    """The device, and how it reaches this machine.

    Attributes:
        name: of the target.
        profile: its description.
        address: of this machine, as seen from the device; None: that from which the device was reached.
        port: at which this machine listens; 0: any that is free.
    """

    name: str
    profile: DeviceProfile
    address: str | None = None
    port: int = 0

    def __post_init__(self) -> None:
        reach = self.profile.target
        if reach.kind not in KINDS:
            raise UserError(
                f"target {self.name} is reached by {reach.kind}: a network is cut between this machine and a device by "
                "ssh, or a local one"
            )
        if reach.measures != "python":
            raise UserError(f"target {self.name}: the agent {reach.measures!r} sends no tensors; 'python' does")


@dataclass(frozen=True)
class TargetCut:
    """A cut, as predicted and as measured; times in ms.

    Attributes:
        where: in words.
        after: layers on the device.
        sends: what crosses, in words.
        sent_bytes: of it, without the message's head.
        device_ms: the first part on the device, by its agent.
        transfer_ms: sending the bytes, and getting those of an answer.
        cloud_ms: the second part here, by the same agent.
        predicted_ms: their sum.
        measured_ms: whole requests, the median with its 95 % interval.
        within_ms: medians of the first and of the second part within these requests.
    """

    where: str
    after: int
    sends: str
    sent_bytes: int
    device_ms: float
    transfer_ms: float
    cloud_ms: float
    predicted_ms: float
    measured_ms: Interval
    within_ms: tuple[float, float]


@dataclass(frozen=True)
class TargetSplit:
    """A network cut between a device and this machine.

    Attributes:
        network: its name.
        cuts: in order.
        cuts_of_all: how many there are; others send more than an earlier one.
        requests: of each cut.
        answered: by this machine.
        wrong: of these, with another answer than the network in torch.
        left_out: cuts that were not measured, and why.
        notes: of the agent.
    """

    network: str
    cuts: list[TargetCut]
    cuts_of_all: int
    requests: int
    answered: int
    wrong: int
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def predicted(self) -> TargetCut:
        """The best one by prediction."""
        return min(self.cuts, key=lambda c: (c.predicted_ms, c.sent_bytes))

    @property
    def measured(self) -> TargetCut:
        """The best one by whole requests."""
        return min(self.cuts, key=lambda c: (c.measured_ms.value, c.sent_bytes))

    def as_json(self) -> dict[str, Any]:
        """For a script."""
        return {
            **asdict(self),
            "cuts": [{**asdict(c), "measured_ms": c.measured_ms.model_dump()} for c in self.cuts],
            "best_predicted_after": self.predicted.after,
            "best_measured_after": self.measured.after,
        }


def workload_on_target(
    workload: str, where: Where, settings: Settings, data_dir: Path | None, say: Callable[[str], None]
) -> list[TargetSplit]:
    """The workload's network, and each baseline that is another one, as static twins.

    Raises:
        UserError: one cannot be built, or not be cut.
        Lost: the device vanished.
        Failed: its agent cannot measure, or not reach this machine, and says why.
        CannotTrace: a part cannot be a graph.
    """
    spec = load_spec(workload)
    data = load_inputs(inputs_name(spec), "test", data_dir=data_dir, seed=settings.seed, **spec.inputs.options)
    if not isinstance(data.inputs, np.ndarray):
        raise UserError(f"{spec.file}: a network is cut between layers of one input, and this one takes several")
    x = torch.from_numpy(stream(data, min(ITEMS, len(data)), settings.seed).inputs)
    parts = [(OWN, spec.title), *((b.name, b.name) for b in spec.baselines if b.model != "self:dense")]
    return [on_target(source_of(spec, part, data, settings), title, x, where, settings, say) for part, title in parts]


def on_target(
    source: ModelSource, title: str, x: Tensor, where: Where, settings: Settings, say: Callable[[str], None]
) -> TargetSplit:
    """One network.

    Args:
        source: of the network.
        title: of it.
        x: items [n, ...].
        where: the other part is computed.
        settings: rounds, requests, threads, seed.
        say: is told what happens.

    Raises:
        UserError: it cannot be cut, or the port is in use.
        Lost, Failed, CannotTrace: as `workload_on_target`.
    """
    half, requests = Half(source, settings.threads), settings.requests or REQUESTS
    cuts = []
    for after in candidates([c.bytes for c in half.chain.crossings]):
        say(f"{title}: cut after {after} of {half.layers} layers")
        cuts.append(cut_at(half, after, x))
    reach = where.profile.target
    timing = Timing(
        threads=settings.threads, seed=settings.seed, rounds_min=5, time_limit_s=0.02 * settings.rounds * len(cuts)
    )
    on_device = timing.model_copy(update={**reach.timing(), "deadline_s": DEADLINE_S})
    here = Reach(kind="local")
    with scratch("split") as folder:
        cloud_job(cuts, x, folder / "cloud", timing, title)
        say(f"{title}: measuring the second parts here")
        local = Local("this machine", here).run(
            folder / "cloud", "python", deadline_s=DEADLINE_S, progress=lambda _: None
        )
        cloud_ms = _medians(Result.model_validate_json(local.read_bytes()))
        listens = "" if reach.kind == "ssh" else "127.0.0.1"
        with CutServer(cuts, listens, where.port, settings.threads) as server:
            split = Split(
                host=where.address,
                port=server.port,
                secret=server.secret,
                requests=requests,
                cuts=[SplitCut(arm=cut.name, sends=cut.sends) for cut in cuts],
            )
            device_job(cuts, x, folder / "device", on_device, title, split)
            target = open_target(where.name, where.profile)
            place = target.run(folder / "device", "python", deadline_s=DEADLINE_S + 60.0, progress=say)
        result = Result.model_validate_json(place.read_bytes())
    if result.emulated:
        raise UserError(f"target {where.name} is emulated: answers were compared, and times would mean nothing")
    device_ms, asked = _medians(result), {row.arm: row for row in result.split or []}
    left_out = {arm.name: arm.reason for arm in result.arms if arm.reason is not None}
    found = []
    for cut in cuts:
        row = asked.get(cut.name)
        if row is None or cut.name not in device_ms or (cut.sends and cut.name not in cloud_ms):
            left_out.setdefault(cut.name, "one of its parts was not measured")
            continue
        parts = (device_ms[cut.name], float(np.median(row.transfer_ns)) / 1e6, cloud_ms.get(cut.name, 0.0))
        measured = median_interval(np.array(row.total_ns, float) / 1e6)
        within = (float(np.median(row.device_ns)) / 1e6, float(np.median(row.cloud_ns)) / 1e6)
        place_of, sends = in_words(half, cut.after)
        found.append(TargetCut(place_of, cut.after, sends, cut.sent_bytes, *parts, sum(parts), measured, within))
    if not found:
        raise UserError(f"{title}: no cut was measured: {next(iter(left_out.values()), 'the agent sent nothing')}")
    return TargetSplit(
        title, found, half.layers + 1, requests, server.answered, server.wrong, left_out, result.agent.notes
    )


def candidates(crossing_bytes: Sequence[int]) -> list[int]:
    """The cuts that can be the best one where this machine is as fast as the device, layer by layer.

    Those that send less than every earlier one, and all on the device: any other leaves more work to the device than an
    earlier one that sends no more.

    Args:
        crossing_bytes: of every cut; the last one, all on the device, sends nothing whatever it says.
    """
    found, least = [], float("inf")
    for after, size in enumerate(crossing_bytes[:-1]):
        if size < least:
            found.append(after)
            least = size
    return [*found, len(crossing_bytes) - 1]


def _medians(result: Result) -> dict[str, float]:
    """ms per item of every arm that was timed: the median over rounds."""
    return {a.name: float(np.median([sum(r) / len(r) for r in a.rounds])) / 1e6 for a in result.arms if a.rounds}
