"""The layers of a neural network on one side of a cut, in either process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.data.pixels import Pixels, from_jpeg
from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import ModelRef, load_spec
from dynbench.meters.chain import Chain, Crossing
from dynbench.partition.messages import pack

OWN = "model"  # the workload's own network, as opposed to its baselines


@dataclass(frozen=True)
class ModelSource:
    """The description of a neural network from which another process can build it.

    Attributes:
        workload: name or file of the workload it belongs to; None: `model` is enough.
        part: of a workload: 'model', or the name of a baseline.
        model: `package.module:function` or `path/to/file.py:function`.
        args: of the function.
        shape: of one input.
        tokens: inputs are whole numbers.
        low: of the pixels, see `dynbench.data.pixels.Pixels`.
        high: of the pixels.
        device: where it is computed: 'cpu' or 'cuda:N'.
    """

    workload: str | None = None
    part: str = OWN
    model: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    shape: Sequence[int] = ()
    tokens: bool = False
    low: Sequence[float] = (0.0,)
    high: Sequence[float] = (1.0,)
    device: str = "cpu"

    def build(self) -> nn.Module:
        """The network with its weights, in eval mode, on its device; without weights it is seeded.

        Raises:
            UserError: it cannot be built.
        """
        torch.manual_seed(0)
        if self.workload is None:
            assert self.model is not None
            return build_model(ModelRef(model=self.model, model_args=self.args), Path.cwd()).to(self.device)
        spec = load_spec(self.workload)
        described = spec if self.part == OWN else next(b for b in spec.baselines if b.name == self.part)
        return build_model(described, spec.folder).to(self.device)

    def example(self) -> Tensor:
        """One input, [1, ...]."""
        if self.tokens:
            return torch.zeros(1, *self.shape, dtype=torch.long, device=self.device)
        draw = torch.Generator().manual_seed(0)
        return torch.randn(1, *self.shape, generator=draw).to(self.device)


class Half:
    """Computes the layers of a network on one side of a cut.

    Args:
        source: of the network.
        threads: torch is to use.

    Attributes:
        source: of the network.
        pixels: how its inputs are sent in 8 bits.
        chain: its layers, and what crosses between them.

    Raises:
        UserError: it cannot be built, or not be cut.
    """

    def __init__(self, source: ModelSource, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.source, self.pixels = source, Pixels(tuple(source.low), tuple(source.high))
        self.chain = Chain(source.build(), source.example())
        self._made: dict[tuple[int, int], Callable[..., tuple[Tensor, ...]]] = {}

    @property
    def layers(self) -> int:
        """Number of layers of the whole network."""
        return len(self.chain.layers)

    @torch.inference_mode()
    def run(self, first: int, last: int, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What crosses before layer `first` -> what crosses after layer `last` - 1."""
        if (first, last) not in self._made:
            self._made[first, last] = self.chain.half(first, last)
        return self._made[first, last](*values)

    def to_wire(self, values: Sequence[Tensor], crossing: Crossing) -> list[Tensor]:
        """What crosses, as it is sent: pixels in 8 bits, everything else as it is."""
        return [
            torch.from_numpy(self.pixels.encode(value.cpu().numpy())) if is_pixels else value
            for value, is_pixels in zip(values, crossing.pixels, strict=True)
        ]

    def from_wire(self, parts: Sequence[Tensor], crossing: Crossing) -> list[Tensor]:
        """What crosses, as it arrives, on the device."""
        decoded = [
            torch.from_numpy(self.pixels.decode(part.numpy())) if is_pixels else part
            for part, is_pixels in zip(parts, crossing.pixels, strict=True)
        ]
        return [value.to(self.source.device) for value in decoded]

    def answer(self, parts: Sequence[Tensor], facts: dict[str, str]) -> list[Tensor]:
        """The cloud's answer to a message: of everything after the cut, or of the whole network to a JPEG file."""
        if facts["do"] == "jpeg":
            image = from_jpeg(parts[0].numpy().tobytes(), len(self.source.low))
            parts, after = [torch.from_numpy(image)[None]], 0
        else:
            after = int(facts["after"])
        values = self.from_wire(parts, self.chain.crossings[after])
        return [value.cpu() for value in self.run(after, self.layers, values)]

    def request(self, after: int, x: Tensor) -> bytes:
        """The message that is sent for an input [1, ...] at a cut."""
        crossing = self.chain.crossings[after]
        return pack(self.to_wire(self.run(0, after, [x]), crossing), do="layers", after=f"{after}")
