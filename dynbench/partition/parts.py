"""The two parts of a network at a cut as graphs, and the jobs with which agents measure them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynbench.deploy.bundle import INPUTS
from dynbench.deploy.job import Answer, GivenArray, Graphs, Input, Job, JobArm, Split, Timing, put_job
from dynbench.graph import Graph, part_graph
from dynbench.partition.half import Half

TOLERANCE = 1e-4  # of the largest value


class _Leaving(nn.Module):
    """The first part: what crosses, then the same as it is sent: pixels in 8 bits, everything else as it is."""

    def __init__(self, part: nn.Module, pixels: Sequence[bool], low: Tensor, span: Tensor) -> None:
        super().__init__()
        self.part, self.pixels, self.low, self.span = part, list(pixels), low, span

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[1, ...] -> tensors."""
        values = self.part(x)
        sent = [
            ((v - self.low) / self.span * 255).round().clamp(0, 255).to(torch.uint8) if is_pixels else v.clone()
            for v, is_pixels in zip(values, self.pixels, strict=True)
        ]
        return (*(v.clone() for v in values), *sent)


class _Arriving(nn.Module):
    """The second part, of what arrives."""

    def __init__(self, part: nn.Module, pixels: Sequence[bool], low: Tensor, span: Tensor) -> None:
        super().__init__()
        self.part, self.pixels, self.low, self.span = part, list(pixels), low, span

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Tensors -> answers."""
        values = [
            part.float() / 255 * self.span + self.low if is_pixels else part
            for part, is_pixels in zip(parts, self.pixels, strict=True)
        ]
        answers: tuple[Tensor, ...] = self.part(*values)
        return answers


@dataclass
class Cut:
    """A network cut after some layers, for a stream of items.

    Attributes:
        after: layers on the device.
        name: of its arms.
        device: the first part as a graph.
        crossing: what it gives, [items, ...] each.
        sends: outputs of that graph that cross; none where all is on the device.
        cloud: the second part as a graph; None where nothing is left.
        arriving: what goes into that, [items, ...] each.
        answers: that are right for these items, [items, ...] each.
    """

    after: int
    name: str
    device: Graph
    crossing: list[np.ndarray]
    sends: list[str] = field(default_factory=list)
    cloud: Graph | None = None
    arriving: list[np.ndarray] = field(default_factory=list)
    answers: list[np.ndarray] = field(default_factory=list)

    @property
    def sent_bytes(self) -> int:
        """For one item, without the message's own head."""
        return sum(a.nbytes // len(a) for a in self.arriving)


@torch.no_grad()
def cut_at(half: Half, after: int, x: Tensor) -> Cut:
    """Both parts of a cut, with what is right for the items x [items, ...].

    Raises:
        CannotTrace: a part cannot be a graph.
    """
    chain, one = half.chain, x[:1]
    crossing, last = chain.crossings[after], after == half.layers
    ends = [torch.tensor(list(end), dtype=torch.float32)[:, None, None] for end in (half.pixels.low, half.pixels.high)]
    low, span = ends[0], ends[1] - ends[0]
    pixels = [False] * len(crossing.shapes) if last else list(crossing.pixels)
    device = part_graph(_Leaving(chain.half(0, after), pixels, low, span), one)
    values = [half.run(0, after, [x[i : i + 1]]) for i in range(len(x))]
    name = "all on the device" if last else f"after {after} layers"
    cut = Cut(after, name, device, _together(values))
    if last:
        cut.answers = cut.crossing
        return cut
    sent = [half.to_wire(v, crossing) for v in values]
    cut.sends = list(device.answers[len(crossing.shapes) :])
    cut.cloud = part_graph(_Arriving(chain.half(after, half.layers), pixels, low, span), *sent[0])
    cut.arriving = _together(sent)
    cut.answers = _together([half.run(after, half.layers, half.from_wire(parts, crossing)) for parts in sent])
    return cut


def _together(values: Sequence[Sequence[Tensor]]) -> list[np.ndarray]:
    return [torch.cat(list(column)).cpu().numpy() for column in zip(*values, strict=True)]


def device_job(cuts: Sequence[Cut], x: Tensor, folder: Path, timing: Timing, title: str, split: Split | None) -> Job:
    """A job of the first parts.

    Raises:
        UserError: the folder cannot be written.
    """
    files, arms = {INPUTS: _npy(x.numpy())}, []
    for i, cut in enumerate(cuts):
        names = cut.device.answers[: len(cut.crossing)]
        arms.append(_arm(files, f"device{i}", cut.name, cut.device, names, cut.crossing, []))
    return _put(folder, files, timing, arms, x, title, split=split)


def cloud_job(cuts: Sequence[Cut], x: Tensor, folder: Path, timing: Timing, title: str) -> Job:
    """A job of the second parts, which get what arrives.

    Raises:
        UserError: the folder cannot be written.
    """
    files, arms = {INPUTS: _npy(x.numpy())}, []
    for i, cut in enumerate(cuts):
        if cut.cloud is not None:
            arms.append(_arm(files, f"cloud{i}", cut.name, cut.cloud, cut.cloud.answers, cut.answers, cut.arriving))
    return _put(folder, files, timing, arms, x, title)


def _arm(
    files: dict[str, bytes],
    stem: str,
    name: str,
    graph: Graph,
    outputs: Sequence[str],
    right: Sequence[np.ndarray],
    given: Sequence[np.ndarray],
) -> JobArm:
    """An arm, whose files are added."""
    files[f"{stem}.onnx"] = graph.model.SerializeToString()
    expected = {f"expected/{stem}-{i}.npy": a for i, a in enumerate(right)}
    inputs = {f"expected/{stem}-in{i}.npy": a for i, a in enumerate(given)}
    files |= {file: _npy(a) for file, a in (expected | inputs).items()}
    return JobArm(
        name=name,
        network=name,
        graphs=Graphs(any=f"{stem}.onnx", single=f"{stem}.onnx"),
        answers=[Answer(output=o, file=f) for o, f in zip(outputs, expected, strict=True)],
        decisions=[],
        given=[GivenArray(input=f"x.{i}" if i else "x", file=file) for i, file in enumerate(inputs)],
    )


def _put(
    folder: Path, files: dict[str, bytes], timing: Timing, arms: list[JobArm], x: Tensor, title: str, **more: Any
) -> Job:
    array = x.numpy()
    stream = Input(name="x", file=INPUTS, dtype=str(array.dtype), item_shape=list(array.shape[1:]), items=len(array))
    return put_job(
        folder, files, timing, workload=title, title=title, input=stream, tolerance=TOLERANCE, arms=arms, **more
    )


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
    return out.getvalue()
