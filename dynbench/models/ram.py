"""RAM: a recurrent network that looks at an image through a few small glimpses, and decides where to look next.

Mnih, Heess, Graves, Kavukcuoglu, "Recurrent Models of Visual Attention", NeurIPS 2014 (arXiv 1406.6247). Layers, sizes
and the pixel rule are those of the best known public re-implementation (kevinzakka/recurrent-visual-attention); the
authors published no code. Ours: halting after fewer glimpses than T, with the classifier evaluated after each; and
locations stored as integers, in steps of 1/4096 of half an image, so that they are the same in every dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Choice, Loop, Shared, Trace, current
from dynbench.models.accounting import decided, static_macs
from dynbench.models.checks import check_least

PAPER = "Mnih et al., Recurrent Models of Visual Attention, NeurIPS 2014"
PROVENANCE = (
    "layers and sizes as in the public re-implementation kevinzakka/recurrent-visual-attention; halting is a "
    "reconstruction of our own, the paper's number of glimpses is fixed"
)

Halting = Literal["confidence", "learned"]
UNIT = 4096  # a location in -1 .. 1 is stored as an integer in -UNIT .. UNIT


class State(NamedTuple):
    """The state carried from glimpse to glimpse. Images are never moved: an item knows its row."""

    h: Any  # hidden state(s), each [n, hidden]
    l: Tensor  # noqa: E741  # the next location (x, y) in 1/UNIT, [n, 2] long
    row: Tensor  # [n] long, row of the item's image
    repeat: Tensor  # [n] long, number of the Monte-Carlo repeat
    images: Shared  # [images, c, H + margin, W + margin], padded with zeros


class GlimpseSensor(nn.Module):
    """rho(x, l): k square patches around l, of side g, s g, s^2 g ..., each average-pooled to g x g.

    Args:
        size: g, pixels.
        scales: k.
        scale: s.
    """

    def __init__(self, size: int, scales: int, scale: int) -> None:
        super().__init__()
        self.size, self.sides = size, [size * scale**i for i in range(scales)]
        self.before = self.sides[-1] // 2  # zeros above and to the left
        self.after = self.sides[-1] - self.before  # below and to the right

    def pad(self, x: Tensor) -> Tensor:
        """Pads images [n, c, H, W] with zeros, so that a patch at any location lies inside."""
        return F.pad(x, (self.before, self.after, self.before, self.after))

    def forward(self, images: Tensor, row: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        """Padded images, row [n] and location l [n, 2] (x, y) in 1/UNIT -> phi [n, k c g g].

        A patch of side p starts at the pixel floor((l + 1) / 2 H) - p // 2 of the image; outside the image are zeros.
        """
        margin, patches = self.before + self.after, []
        x, y = ((l[:, i] + UNIT) * (images.shape[3 - i] - margin) // (2 * UNIT) for i in (0, 1))
        for side in self.sides:
            start = self.before - side // 2
            patch = _windows(images, row, y + start, x + start, side)
            patches.append(F.avg_pool2d(patch, side // self.size) if side > self.size else patch)
        return torch.stack(patches, 1).flatten(1)


def _windows(images: Tensor, row: Tensor, y: Tensor, x: Tensor, side: int) -> Tensor:
    """The windows of images[row] whose first pixels are at (y, x), [n] each -> [n, c, side, side]."""
    if torch.jit.is_tracing():  # ONNX has no strided views: there each pixel is looked up, which is slower in eager
        along = torch.arange(side, device=images.device)
        rows, columns = (y.unsqueeze(1) + along).unsqueeze(2), (x.unsqueeze(1) + along).unsqueeze(1)
        return images[row.view(-1, 1, 1), :, rows, columns].permute(0, 3, 1, 2)
    windows = images.unfold(2, side, 1).unfold(3, side, 1)  # a view: [images, c, rows, columns, side, side]
    return windows[row, :, y, x]  # only these are copied


class GlimpseNetwork(nn.Module):
    """g_t = ReLU(W_a ReLU(W phi) + W_b ReLU(W l)): the glimpse and its location.

    Args:
        seen: size of phi.
        width: of each first layer.
        hidden: size of g_t.
    """

    def __init__(self, seen: int, width: int, hidden: int) -> None:
        super().__init__()
        self.what1, self.where1 = nn.Linear(seen, width), nn.Linear(2, width)
        self.what2, self.where2 = nn.Linear(width, hidden), nn.Linear(width, hidden)

    def forward(self, phi: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        """phi [n, k c g g], l [n, 2] in -1 .. 1 -> g [n, hidden]."""
        g: Tensor = F.relu(self.what2(F.relu(self.what1(phi))) + self.where2(F.relu(self.where1(l))))
        return g


class Core(nn.Module):
    """h_t = ReLU(W_i g_t + W_h h_{t-1})."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.i2h, self.h2h = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, g: Tensor, h: Tensor) -> Tensor:
        """g, h [n, hidden] -> h [n, hidden]."""
        h = F.relu(self.i2h(g) + self.h2h(h))
        return h


class Locator(nn.Module):
    """mu = tanh(W2 ReLU(W1 h)), or without a hidden layer tanh(W h) (the paper).

    Args:
        hidden: size of h.
        width: of the hidden layer, 0: none.
        detach: h receives no gradient from the locator.
    """

    def __init__(self, hidden: int, width: int, detach: bool) -> None:
        super().__init__()
        self.detach = detach
        self.hidden = nn.Linear(hidden, width) if width else None
        self.place = nn.Linear(width or hidden, 2)

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Tensor:
        """h [n, hidden] -> mu [n, 2]; with noise [n, 2] from N(0, std^2), a draw of N(mu, std^2)."""
        h = h.detach() if self.detach else h
        if self.hidden is not None:
            h = F.relu(self.hidden(h))
        mu: Tensor = torch.tanh(self.place(h))
        return mu if noise is None else mu + noise


def on_grid(l: Tensor) -> Tensor:  # noqa: E741
    """A location [n, 2], clamped to -1 .. 1 and rounded to steps of 1/UNIT: [n, 2] long."""
    return (l.clamp(-1, 1).to(torch.promote_types(l.dtype, torch.float32)) * UNIT).round().long()


class Confident(nn.Module):
    """Halts where the classifier's largest probability exceeds a threshold, which is part of the weights."""

    threshold: Tensor

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))

    def forward(self, answer: Tensor, state: State, k: int) -> Tensor:
        """Log-probabilities [n, C] after glimpse k -> [n] bool."""
        return answer.amax(-1).exp() > self.threshold


class HaltingUnit(nn.Module):
    """Halts where a logistic unit on the state predicts that the answer is right."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.unit = nn.Linear(hidden, 1)

    def score(self, h: Tensor) -> Tensor:
        """h [n, hidden] -> logit [n]."""
        logit: Tensor = self.unit(h).squeeze(-1)
        return logit

    def forward(self, answer: Tensor, state: State, k: int) -> Tensor:
        """The state after glimpse k -> [n] bool."""
        return self.score(class_state(state.h)) > 0


def class_state(h: Any) -> Tensor:
    """The hidden state from which classes are read: the only one, or the first."""
    found: Tensor = h[0] if isinstance(h, tuple) else h
    return found


class RAM(nn.Module):
    """T glimpses: look at l_t, update h_t, read l_{t+1} from it; the class is read from the last h, or from one before.

    In evaluation the locations are the means, and the first is the centre. With M > 1 repeats every image is processed
    M times, from M first locations drawn uniformly and with M draws of noise N(0, std^2) at each glimpse, and the
    log-probabilities are averaged. The draws are a function of (seed, repeat, glimpse), the same for all images.

    Args:
        glimpses: T, with `halt` the maximum.
        size: g, side of the smallest patch and of all patches after pooling, pixels.
        scales: k, patches per glimpse.
        scale: s, the side of a patch relative to the one before.
        channels: c of the images.
        image: side of the images, or (height, width); only for `input_shape`, images of any size are accepted.
        num_classes: outputs.
        hidden: size of the glimpse vector and the recurrent state.
        width: of the first layers of the glimpse network.
        locator_hidden: width of the locator's hidden layer (128 in the public re-implementation); 0: linear (paper).
        std: of a location around its mean, in units of half an image, in training and in Monte-Carlo repeats.
        halt: None: T glimpses (paper); 'confidence': stop where the classifier is confident; 'learned': a halting unit.
        threshold: of 'confidence', a probability; it is part of the weights.
        repeats: M.
        seed: of the repeats' draws.

    Raises:
        ValueError: an unknown halting rule, or a size out of range.
    """

    noise: Tensor
    first: Tensor
    reward_stops = True  # the reward trains the locator only, the recurrent state learns from the label

    def __init__(
        self,
        glimpses: int = 6,
        size: int = 8,
        scales: int = 1,
        scale: int = 2,
        channels: int = 1,
        image: int | tuple[int, int] = 28,
        num_classes: int = 10,
        hidden: int = 256,
        width: int = 128,
        locator_hidden: int = 128,
        std: float = 0.05,
        halt: Halting | None = None,
        threshold: float = 0.9,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = (channels, *_sides(image))
        check_least(1, glimpses=glimpses, size=size, scales=scales, scale=scale, channels=channels)
        check_least(1, image=min(self.shape[1:]), num_classes=num_classes, hidden=hidden, width=width, repeats=repeats)
        if locator_hidden < 0 or std <= 0:
            raise ValueError(f"locator_hidden={locator_hidden} is 0 or more, and std={std} above 0")
        if halt not in (None, "confidence", "learned"):
            raise ValueError(
                f"halt={halt!r}: a RAM halts by 'confidence', by a 'learned' unit, or after the last glimpse (None)"
            )
        self.hidden, self.std, self.repeats = hidden, std, repeats
        self.sensor = GlimpseSensor(size, scales, scale)
        self.glimpse = GlimpseNetwork(scales * channels * size**2, width, hidden)
        self.core = self.make_core(hidden)
        self.look = Choice("look", Locator(hidden, locator_hidden, self.reward_stops), on_grid)
        self.classifier = nn.Linear(hidden, num_classes)
        self.baseline = nn.Linear(hidden, 1)  # b_t, of the reward; used in training only
        rule = {None: None, "confidence": Confident(threshold), "learned": HaltingUnit(hidden)}[halt]
        self.loop = Loop("glimpses", self.step, rule, glimpses, self.head)
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("noise", torch.empty(repeats, glimpses, 2), persistent=False)
        self.register_buffer("first", torch.empty(repeats, 2), persistent=False)
        many = float(repeats > 1)
        self.noise.copy_(many * std * torch.randn(repeats, glimpses, 2, generator=draw, device="cpu"))
        self.first.copy_(many * (2 * torch.rand(repeats, 2, generator=draw, device="cpu") - 1))

    def make_core(self, hidden: int) -> nn.Module:
        """The recurrent part."""
        return Core(hidden)

    def h0(self, n: int, like: Tensor) -> Any:
        """The state before the first glimpse: zeros [n, hidden]."""
        return like.new_zeros(n, self.hidden)

    def for_place(self, h: Any) -> Tensor:
        """The hidden state from which locations are read [n, hidden]."""
        found: Tensor = h
        return found

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def step(self, state: State, k: int) -> State:
        """Glimpse k."""
        h, l, row, repeat, images = state  # noqa: E741
        phi = self.sensor(images.value, row, l)  # [n, k c g g]
        g = self.glimpse(phi, l.to(phi.dtype) / UNIT)  # [n, hidden]
        h = self.core(g, h)
        noise = self.noise[repeat, k] if self.repeats > 1 else None
        l = self.look(self.for_place(h), noise)  # noqa: E741
        return State(h, l, row, repeat, images)

    def head(self, state: State, k: int) -> Tensor:
        """Log-probabilities of the classes [n, C]."""
        return self.classifier(class_state(state.h)).log_softmax(-1)

    def forward(self, x: Tensor, first: Tensor | None = None) -> Tensor:
        """x [n, c, H, W], and the first location [n, 2], default the centre -> log-probabilities [n, C].

        Raises:
            ValueError: images with another number of channels.
        """
        if x.shape[1] != self.shape[0]:
            raise ValueError(f"images of {x.shape[1]} channels; this network takes {self.shape[0]}")
        n, m = x.shape[0], self.repeats
        ex = current()
        with nullcontext() if ex is None or m == 1 else ex.spread(m):  # each image becomes M items
            row = torch.arange(n, device=x.device).repeat_interleave(m)
            repeat = torch.arange(m, device=x.device).repeat(n)
            l0 = self.first[repeat] if first is None else first.repeat_interleave(m, 0)
            state = State(self.h0(n * m, x), on_grid(l0), row, repeat, Shared(self.sensor.pad(x)))
            log_p: Tensor = self.loop(state)
        return log_p if m == 1 else log_p.unflatten(0, (n, m)).mean(1)


def _sides(image: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W)."""
    height, width = (image, image) if isinstance(image, int) else image
    return height, width


class PlainCNN(nn.Module):
    """The baseline for glimpses: a small convolutional network on the whole image (ours, not the paper's).

    Layers of 3x3 convolution, batch norm and ReLU, each halving the image; global max pooling; a linear classifier.

    Args:
        channels: of the images.
        image: side of the images, or (height, width); only for `input_shape`, images of any size are accepted.
        num_classes: outputs.
        widths: channels of each layer.

    Raises:
        ValueError: no layer, or a size below 1.
    """

    def __init__(
        self,
        channels: int = 1,
        image: int | tuple[int, int] = 60,
        num_classes: int = 10,
        widths: Sequence[int] = (8, 16, 32, 64),
    ) -> None:
        super().__init__()
        self.shape = (channels, *_sides(image))
        if not widths:
            raise ValueError("widths=[]: a convolutional network has at least one layer")
        check_least(1, channels=channels, image=min(self.shape[1:]), num_classes=num_classes, widths=min(widths))
        self.layers = nn.Sequential()
        for before, width in zip((channels, *widths), widths, strict=False):
            conv = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            self.layers.extend([conv, nn.BatchNorm2d(width), nn.ReLU()])
        self.out = nn.Linear(widths[-1], num_classes)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """x [n, c, H, W] -> logits [n, C]."""
        logits: Tensor = self.out(self.layers(x).amax((2, 3)))
        return logits


def accounted_macs(model: RAM, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the paper argues: the number of glimpses, each at a cost that does not depend on the size of the image."""
    steps = model.loop.max_steps
    looked = decided(trace, "look").reached  # a location is decided at every glimpse
    taken = float(looked.double().sum()) / max(trace.items, 1)
    head = static_macs(model.classifier, (model.hidden,)) * model.repeats
    each = (static_macs(model, shape) - head) / (steps * model.repeats)
    rule = "glimpses taken times the cost of a glimpse, classifier counted once, halting not counted"
    return taken * each + head, rule
