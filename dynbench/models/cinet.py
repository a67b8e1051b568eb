"""CiNet: a small network on the device finds the patch that matters, and only this patch is sent to the cloud.

Dai, Kong, Guo, Huang, "CiNet: Redesigning Deep Neural Networks for Efficient Mobile-Cloud Collaborative Inference",
SDM 2021. The abstract and Figure 1 are known: a mobile-side extractor outputs a small image patch, a cloud-side
classifier sees nothing else, and both are trained on the label; of a 100 x 100 x 3 image a patch of 10 x 10 x 3 crosses
the network, which is the 99 % less transmitted data of the abstract.

All the rest is OUR reconstruction: extractor = down-sampling, convolutions, a saliency map and its soft-argmax; patch =
a window of fixed size around that place, averaged down by an integer factor; classifier = a small convolutional
network. Gradients pass the crop as in a spatial transformer of fixed scale (`Crop.soft`, used in training only).

Which pixels are computed on depends on the input, how much is computed does not: a `Choice`, with nothing to save for a
strategy. The saving is in the data that crosses the network, which is declared (`Network`) and part of no measured
time. `dynbench partition` measures both ends and places a network between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Choice, Trace
from dynbench.hooks import DeclaredCost
from dynbench.models.accounting import static_macs

PAPER = (
    "Dai et al., CiNet: Redesigning Deep Neural Networks for Efficient Mobile-Cloud Collaborative Inference, SDM 2021"
)
PROVENANCE = (
    "reconstruction from the abstract and Figure 1 (extractor on the device, patch over the network, classifier in the "
    "cloud); layers, the gradient through the crop and the training are ours"
)

UNIT = 4096  # a place in -1 .. 1 is stored as an integer in -UNIT .. UNIT: the same in every dtype


def on_grid(place: Tensor) -> Tensor:
    """A place [n, 2] (x, y) in -1 .. 1, rounded to steps of 1/UNIT: [n, 2] long."""
    return (place.float().clamp(-1, 1) * UNIT).round().long()


class SoftArgmax(nn.Module):
    """The mean place under the softmax of a saliency map: differentiable, and finer than the map's cells."""

    def forward(self, saliency: Tensor) -> Tensor:
        """[n, 1, h, w] -> (x, y) in -1 .. 1, [n, 2]: the centre of cell i of w is at (2 i + 1) / w - 1."""
        n, _, h, w = saliency.shape
        p = saliency.flatten(1).softmax(1).view(n, h, w)
        x = (2 * torch.arange(w, dtype=p.dtype, device=p.device) + 1) / w - 1
        y = (2 * torch.arange(h, dtype=p.dtype, device=p.device) + 1) / h - 1
        return torch.stack([(p.sum(1) * x).sum(1), (p.sum(2) * y).sum(1)], 1)


class Extractor(nn.Module):
    """Finds the place that matters: down-sampled image, 3 x 3 convolutions, a saliency map, its soft-argmax.

    Args:
        channels: of the images.
        down: the image is first averaged down by this factor.
        widths: channels of the convolutions; the second halves the map.
    """

    def __init__(self, channels: int, down: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.AvgPool2d(down) if down > 1 else nn.Identity()
        self.layers = _convolutions(channels, widths, halving=(1,))
        self.saliency = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.place = SoftArgmax()

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, H, W] -> the place (x, y) in -1 .. 1, [n, 2]."""
        place: Tensor = self.place(self.saliency(self.layers(self.down(x))))
        return place


class Crop(nn.Module):
    """The window around a place, moved where necessary to lie inside the image, averaged down.

    Args:
        patch: side of the patch, pixels.
        zoom: image pixels per pixel of the patch, along each axis.
    """

    pixels = True  # the output is pixels, which cross a network with 8 bits each

    def __init__(self, patch: int, zoom: int) -> None:
        super().__init__()
        self.patch, self.zoom = patch, zoom

    def corner(self, place: Tensor, size: int) -> Tensor:
        """A coordinate in 1/UNIT, [n] long -> first pixel of the window along an axis of `size` pixels, [n] long."""
        side = self.patch * self.zoom
        middle = ((place + UNIT) * size + UNIT) // (2 * UNIT)  # rounded to the nearest pixel
        return (middle - side // 2).clamp(0, size - side)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """x [n, c, H, W], place [n, 2] (x, y) in 1/UNIT, long -> patch [n, c, g, g]."""
        side, rows = self.patch * self.zoom, torch.arange(x.shape[0], device=x.device)
        left, top = (self.corner(place[:, i], x.shape[3 - i]) for i in (0, 1))
        windows = x.unfold(2, side, 1).unfold(3, side, 1)  # a view: [n, c, rows, columns, side, side]
        window = windows[rows, :, top, left]  # [n, c, side, side]; only these are copied
        return F.avg_pool2d(window, self.zoom) if self.zoom > 1 else window

    def soft(self, x: Tensor, place: Tensor) -> Tensor:
        """The same around a place [n, 2] in -1 .. 1, interpolated bilinearly: gradients reach the place."""
        n, _, height, width = x.shape
        side = self.patch * self.zoom
        offsets = torch.arange(side, dtype=x.dtype, device=x.device) + (0.5 - side / 2)  # centres of its pixels
        grid = [offsets.view(1, *shape) * 2 / size for shape, size in (((1, -1), width), ((-1, 1), height))]
        limit = place.new_tensor([1 - side / width, 1 - side / height])
        middle = torch.maximum(torch.minimum(place, limit), -limit)  # the window stays inside the image
        points = [(middle[:, i].view(n, 1, 1) + grid[i]).expand(n, side, side) for i in (0, 1)]
        window = F.grid_sample(x, torch.stack(points, -1), align_corners=False)
        return F.avg_pool2d(window, self.zoom) if self.zoom > 1 else window


class Classifier(nn.Module):
    """Classifies the patch: 3 x 3 convolutions, all but the first halving the map; global max pooling.

    Args:
        channels: of the patch.
        widths: channels of the convolutions.
        num_classes: C.
    """

    def __init__(self, channels: int, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.layers = _convolutions(channels, widths, halving=range(1, len(widths)))
        self.pool, self.flat = nn.AdaptiveMaxPool2d(1), nn.Flatten()
        self.out = nn.Linear(widths[-1], num_classes)

    def forward(self, patch: Tensor) -> Tensor:
        """patch [n, c, g, g] -> logits [n, C]."""
        logits: Tensor = self.out(self.flat(self.pool(self.layers(patch))))
        return logits


@dataclass(frozen=True)
class Network:
    """The network between device and cloud. Declared, not measured.

    Attributes:
        name: for reports.
        up_mbit_s: bandwidth from the device to the cloud.
        round_trip_ms: of an empty message and its answer.
    """

    name: str
    up_mbit_s: float
    round_trip_ms: float

    def __post_init__(self) -> None:
        if not (self.up_mbit_s > 0 and self.round_trip_ms >= 0):
            raise ValueError(
                f"network: up_mbit_s={self.up_mbit_s!r} is above 0, and round_trip_ms={self.round_trip_ms!r} 0 or more"
            )

    def query_s(self, sent_bytes: int) -> float:
        """Seconds from sending so many bytes to receiving a short answer, without the work in the cloud."""
        return self.round_trip_ms / 1e3 + 8 * sent_bytes / (self.up_mbit_s * 1e6)


class CiNet(nn.Module):
    """Extractor on the device, a patch over the network, classifier in the cloud.

    Args:
        channels: c of the images.
        image: side of the images, or (height, width).
        num_classes: C.
        patch: g, side of the patch, pixels.
        zoom: image pixels per pixel of the patch, along each axis.
        down: factor by which the extractor averages the image down.
        widths: channels of the extractor's convolutions.
        classifier_widths: channels of the classifier's convolutions.
        network: the declaration of the network, the fields of `Network`; None: none.

    Raises:
        ValueError: a size out of range, a window that does not fit the image, or unknown fields of a network.
    """

    def __init__(
        self,
        channels: int = 1,
        image: int | tuple[int, int] = 60,
        num_classes: int = 10,
        patch: int = 6,
        zoom: int = 4,
        down: int = 3,
        widths: Sequence[int] = (8, 12, 16),
        classifier_widths: Sequence[int] = (16, 32, 64),
        network: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        height, width = (image, image) if isinstance(image, int) else image
        sizes = {"channels": channels, "num_classes": num_classes, "patch": patch, "zoom": zoom, "down": down}
        sizes |= {"widths": min(widths, default=0), "classifier_widths": min(classifier_widths, default=0)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size}: every size is 1 or more, and there is at least one convolution")
        if patch * zoom > min(height, width):
            raise ValueError(f"patch={patch} at zoom={zoom}: {patch * zoom} pixels do not fit an image of {image}")
        if down > min(height, width):
            raise ValueError(f"down={down}: nothing is left of an image of {image}")
        self.shape = (channels, height, width)
        self.network = None if network is None else _network(network)
        self.look = Choice("look", Extractor(channels, down, widths), on_grid)
        self.crop = Crop(patch, zoom)
        self.classifier = Classifier(channels, classifier_widths, num_classes)

    @property
    def patch_bytes(self) -> int:
        """Bytes that cross the network for an image: one for each value of the patch."""
        return self.shape[0] * self.crop.patch**2

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, H, W] -> logits [n, C].

        Raises:
            ValueError: images of another shape than that of the network.
        """
        self._check(x)
        place = self.look(x)  # [n, 2], on the device
        patch = self.crop(x, place)  # [n, c, g, g], sent to the cloud
        logits: Tensor = self.classifier(patch)  # in the cloud
        return logits

    def soft(self, x: Tensor) -> Tensor:
        """The same for training: the patch is interpolated, so that the extractor learns from the label."""
        self._check(x)
        logits: Tensor = self.classifier(self.crop.soft(x, self.look.body(x)))
        return logits

    def _check(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"images of shape {tuple(x.shape[1:])}; this network takes {self.shape}")


def _network(declared: dict[str, Any]) -> Network:
    try:
        return Network(**declared)
    except TypeError as e:
        raise ValueError(f"network={declared}: declare name, up_mbit_s and round_trip_ms") from e


class Thumbnail(nn.Module):
    """A control: the same classifier on the same number of pixels, but these are a thumbnail of the whole image.

    Args:
        channels: c of the images.
        image: side of the images, or (height, width).
        num_classes: C.
        patch: side of the thumbnail, pixels.
        classifier_widths: channels of the classifier's convolutions.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        channels: int = 1,
        image: int | tuple[int, int] = 60,
        num_classes: int = 10,
        patch: int = 6,
        classifier_widths: Sequence[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        height, width = (image, image) if isinstance(image, int) else image
        if min(channels, height, width, num_classes, patch, min(classifier_widths, default=0)) < 1:
            raise ValueError("every size is 1 or more, and there is at least one convolution")
        self.shape = (channels, height, width)
        self.shrink = Shrink(patch)
        self.classifier = Classifier(channels, classifier_widths, num_classes)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, H, W] -> logits [n, C]."""
        logits: Tensor = self.classifier(self.shrink(x))
        return logits


class Shrink(nn.AdaptiveAvgPool2d):
    """The whole image, averaged down to [n, c, g, g]."""

    pixels = True


def _convolutions(channels: int, widths: Sequence[int], halving: Sequence[int]) -> nn.Sequential:
    layers = nn.Sequential()
    for i, (before, width) in enumerate(zip((channels, *widths), widths, strict=False)):
        conv = nn.Conv2d(before, width, 3, stride=2 if i in halving else 1, padding=1, bias=False)
        layers.extend([conv, nn.BatchNorm2d(width), nn.ReLU()])
    return layers


def accounted_macs(model: CiNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """The computation on the device, which decisions do not change."""
    rule = (
        "the extractor on the device, without the classifier in the cloud; which of them the paper counts is not known"
    )
    return static_macs(model.look.body, shape), rule


def declared_costs(model: CiNet, trace: Trace) -> list[DeclaredCost]:
    """The crossing of the network, as the workload declares it, by all inputs; without a network []."""
    if model.network is None:
        return []
    n = model.network
    what = f"classifier behind {n.name} of {n.up_mbit_s:g} Mbit/s up and {n.round_trip_ms:g} ms round trip"
    sent = model.patch_bytes
    return [{"what": what, "share": 1.0, "latency_s": n.query_s(sent), "cost": float(sent), "unit": "bytes sent"}]
