"""CapsNet: capsules are routed to higher capsules by iterative agreement.

Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules", NIPS 2017 (arXiv 1710.09829). Layers, routing (procedure 1),
margin loss (eq. 4) and decoder (section 4.1) are the paper's; the initial weights and the weight of the reconstruction
loss are those of other implementations. The paper iterates a fixed number of times; leaving when the capsules of an
input no longer change (`halt="convergence"`) is ours.

In the 28 x 28 network an iteration is 0.2 % of the multiply-accumulates, but iterations are sequential, and each reads
all of u_hat twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Loop
from dynbench.models.checks import check_least

PAPER = "Sabour, Frosst, Hinton, Dynamic Routing Between Capsules, NIPS 2017"
PROVENANCE = "paper, sections 2 to 4; leaving on convergence is our addition"

Halt = Literal["convergence"]
State = tuple[Tensor, Tensor, Tensor, Tensor]  # b [n, J, I], u_hat [n, J, I, D], v and v one step before [n, J, D]
KERNEL = 9


def squash(s: Tensor) -> Tensor:
    """v = |s|^2 / (1 + |s|^2) s / |s| (eq. 1): keeps the direction, with a length below 1; s [..., D]."""
    q = s.square().sum(-1, keepdim=True)
    return s * (q / (1 + q) * (q + 1e-9).rsqrt())


def lengths(v: Tensor) -> Tensor:
    """|v_j|, the network's confidence that j is present: v [..., D] -> [...]."""
    return (v.square().sum(-1) + 1e-9).sqrt()  # differentiable at 0


def margin_loss(v: Tensor, y: Tensor) -> Tensor:
    """sum_k T_k max(0, 0.9 - |v_k|)^2 + 0.5 (1 - T_k) max(0, |v_k| - 0.1)^2 (eq. 4), the mean over the batch.

    Args:
        v: [n, J] lengths |v_k|.
        y: [n] labels.
    """
    t = F.one_hot(y, v.shape[1]).to(v.dtype)  # T_k
    parts = t * F.relu(0.9 - v).square() + 0.5 * (1 - t) * F.relu(v - 0.1).square()
    return parts.sum(1).mean()


class PrimaryCaps(nn.Module):
    """A convolution of stride 2 whose output is interpreted as capsules and squashed.

    Args:
        channels: of the input map.
        types: capsules at each position (32 in the paper).
        dim: of a capsule (8).
    """

    def __init__(self, channels: int, types: int, dim: int) -> None:
        super().__init__()
        self.dim, self.conv = dim, nn.Conv2d(channels, types * dim, KERNEL, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> u [n, I, d], ordered by type, I = types * H' * W'."""
        u = self.conv(x).unflatten(1, (-1, self.dim))  # [n, types, d, H', W']
        return squash(u.permute(0, 1, 3, 4, 2).flatten(1, 3))


class Convergence(nn.Module):
    """An input leaves when none of its capsules moved further than `tolerance` in the last iteration.

    Args:
        tolerance: limit for max_j |v_j - v_j of the iteration before|.
    """

    def __init__(self, tolerance: float) -> None:
        super().__init__()
        self.tolerance = tolerance

    def forward(self, v: Tensor, state: State, k: int) -> Tensor:
        """v [n, J, D] after iteration k -> [n] bool."""
        moved = (v - state[3]).square().sum(-1).amax(1)
        return moved < self.tolerance**2


class DigitCaps(nn.Module):
    """Each lower capsule predicts each higher one; predictions are weighted by agreement (procedure 1).

    u_hat_j|i = W_ij u_i (eq. 2) is computed once and stored with j first, so that both products of an iteration read it
    in order.

    Args:
        inputs: I, number of lower capsules.
        in_dim: their dimension d.
        outputs: J, number of higher capsules.
        out_dim: their dimension D.
        routings: r, iterations; with `halt` the maximum.
        halt: None or a `Convergence`.
    """

    def __init__(
        self, inputs: int, in_dim: int, outputs: int, out_dim: int, routings: int, halt: Convergence | None
    ) -> None:
        super().__init__()
        self.outputs, self.out_dim = outputs, out_dim
        self.weight = nn.Parameter(0.1 * torch.randn(inputs, in_dim, outputs * out_dim))  # W_ij, transposed
        self.routing = Loop("routing", self.iterate, halt, routings, lambda state, k: state[2])

    def forward(self, u: Tensor) -> Tensor:
        """u [n, I, d] -> v [n, J, D]."""
        u_hat = torch.bmm(u.transpose(0, 1), self.weight)  # eq. 2: [I, n, J * D]
        u_hat = u_hat.unflatten(2, (self.outputs, self.out_dim)).permute(1, 2, 0, 3).contiguous()  # [n, J, I, D]
        b = u_hat.new_zeros(u_hat.shape[:3])  # procedure 1, line 2
        v = u_hat.new_zeros(*u_hat.shape[:2], self.out_dim)
        capsules: Tensor = self.routing((b, u_hat, v, v))
        return capsules

    def iterate(self, state: State, k: int) -> State:
        """One iteration: line 7 of procedure 1 for the iteration before, then lines 4 to 6.

        So nothing is added to b after the last iteration of an input, where nobody would read it.
        """
        b, u_hat, before, _ = state
        if k > 0:
            b = b + torch.matmul(u_hat, before.unsqueeze(3)).squeeze(3)  # b_ij += u_hat_j|i . v_j
        c = b.softmax(1)  # eq. 3: over the higher capsules, [n, J, I]
        s = torch.matmul(c.unsqueeze(2), u_hat).squeeze(2)  # s_j = sum_i c_ij u_hat_j|i, [n, J, D]
        return b, u_hat, squash(s), before


class Decoder(nn.Module):
    """Reconstructs the input from the capsule of one class, all others set to zero (section 4.1).

    Args:
        classes: J.
        dim: D.
        widths: of the hidden layers (512, 1024 in the paper).
        shape: of an image, [C, H, W].
    """

    def __init__(self, classes: int, dim: int, widths: Sequence[int], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        sizes = [classes * dim, *widths]
        hidden: list[nn.Module] = []
        for before, after in zip(sizes[:-1], sizes[1:], strict=True):
            hidden += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], torch.Size(shape).numel()), nn.Sigmoid())

    def forward(self, v: Tensor, y: Tensor) -> Tensor:
        """v [n, J, D], class y [n] of the capsule to use -> image [n, C, H, W], values 0 to 1."""
        mask = F.one_hot(y, v.shape[1]).to(v.dtype)
        image: Tensor = self.layers((v * mask.unsqueeze(2)).flatten(1)).unflatten(1, self.shape)
        return image


class CapsNet(nn.Module):
    """Convolution, PrimaryCaps, DigitCaps; the decoder regularises training and does not affect the answer.

    Args:
        shape: of an image, [C, H, W]. If C is 1, images of several channels are converted to grey, their mean.
        channels: of the first convolution.
        primary: PrimaryCaps.
        digits: DigitCaps.
        decoder: or None.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int,
        primary: PrimaryCaps,
        digits: DigitCaps,
        decoder: Decoder | None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.conv1 = nn.Conv2d(shape[0], channels, KERNEL)
        self.primary, self.digits, self.decoder = primary, digits, decoder

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input."""
        return self.shape

    def capsules(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> v [n, J, D]."""
        if self.shape[0] == 1 and x.shape[1] > 1:
            x = x.mean(1, keepdim=True)
        v: Tensor = self.digits(self.primary(F.relu(self.conv1(x))))
        return v

    def forward(self, x: Tensor) -> Tensor:
        """x [n, C, H, W] -> lengths of the capsules [n, num_classes], 0 to 1."""
        return lengths(self.capsules(x))

    def reconstruct(self, v: Tensor, y: Tensor | None = None) -> Tensor:
        """v [n, J, D] -> images [n, C, H, W] from the capsules of the labels y [n]; None: from the longest ones.

        Raises:
            ValueError: there is no decoder.
        """
        if self.decoder is None:
            raise ValueError("this CapsNet was built without a decoder (decoder=False)")
        image: Tensor = self.decoder(v, lengths(v).argmax(1) if y is None else y)
        return image


def capsnet(
    routings: int = 3,
    halt: Halt | None = None,
    tolerance: float = 0.05,
    size: int = 28,
    image_channels: int = 1,
    channels: int = 256,
    capsule_types: int = 32,
    capsule_dim: int = 8,
    digit_dim: int = 16,
    num_classes: int = 10,
    decoder: bool = False,
    decoder_widths: Sequence[int] = (512, 1024),
) -> CapsNet:
    """A CapsNet; the defaults are the paper's for MNIST.

    Args:
        routings: r, iterations.
        halt: None: exactly r iterations; 'convergence': an input leaves when none of its capsules moved further than
            `tolerance` in an iteration.
        tolerance: see `halt`; above 0.
        size: side of the square images, pixels, at least 17.
        image_channels: of the images; 1: images of several channels are converted to grey.
        channels: of the first convolution.
        capsule_types: primary capsules at each position.
        capsule_dim: their dimension.
        digit_dim: dimension of the capsules of the classes.
        num_classes: outputs.
        decoder: whether there is a decoder, for training.
        decoder_widths: of its hidden layers.

    Raises:
        ValueError: an argument out of its range.
    """
    if halt not in (None, "convergence"):
        raise ValueError(f"halt={halt!r}: a CapsNet has halt=None (all iterations) or halt='convergence'")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: a capsule always moves a little; tolerance is above 0")
    if size < 2 * KERNEL - 1:
        raise ValueError(f"size={size}: two 9x9 convolutions need images of 17 x 17 pixels or more")
    check_least(1, routings=routings, image_channels=image_channels, channels=channels, capsule_types=capsule_types)
    check_least(1, capsule_dim=capsule_dim, digit_dim=digit_dim, num_classes=num_classes)
    side = (size - KERNEL + 1 - KERNEL) // 2 + 1  # 6 for images of 28 x 28
    shape = (image_channels, size, size)
    primary = PrimaryCaps(channels, capsule_types, capsule_dim)
    rule = Convergence(tolerance) if halt == "convergence" else None
    digits = DigitCaps(capsule_types * side**2, capsule_dim, num_classes, digit_dim, routings, rule)
    draw = Decoder(num_classes, digit_dim, decoder_widths, shape) if decoder else None
    return CapsNet(shape, channels, primary, digits, draw)
