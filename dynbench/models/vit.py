"""The vision transformer that token pruning and merging start from: DeiT, and its larger relatives.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv 2010.11929); Touvron et al., "Training
Data-Efficient Image Transformers" (DeiT), ICML 2021 (arXiv 2012.12877). Structure and sizes as in the authors' code:
pre-norm blocks, a bias in every linear layer, a class token, learned positions, layer norm with eps 1e-6.

Ours: optionally, in place of one convolution per patch, a stem of small ones (after Xiao et al., "Early Convolutions
Help Transformers See Better", NeurIPS 2021), with which a small network learns in minutes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.models.accounting import linear_macs, static_macs
from dynbench.models.typed import module_list

PAPER = "Touvron et al., Training Data-Efficient Image Transformers (DeiT), ICML 2021"
PROVENANCE = "structure and sizes as in the authors' code"


class Size(NamedTuple):
    """The size of a network.

    Attributes:
        width: d, of a token.
        depth: blocks.
        heads: of attention.
        patch: side of a patch, pixels.
    """

    width: int
    depth: int
    heads: int
    patch: int = 16


SIZES = {
    "deit_ti": Size(192, 12, 3),
    "deit_256": Size(256, 12, 4),  # used by the authors of DynamicViT
    "deit_s": Size(384, 12, 6),
    "deit_b": Size(768, 12, 12),
    "vit_l": Size(1024, 24, 16),
    "vit_h": Size(1280, 32, 16, 14),
}


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [n, T, d], mask (bool) or bias (added) over keys [n, 1, 1, T] -> y [n, T, d], keys [n, h, T, d/h]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [n, h, T, d/h]
        y = F.scaled_dot_product_attention(q, k, v, bias)
        return self.out(y.transpose(1, 2).flatten(2)), k


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def attend(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first half: x [n, T, d] -> x [n, T, d], keys [n, h, T, d/h]."""
        y, keys = self.attention(self.norm1(x), bias)
        return x + y, keys

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half: x [n, T, d] -> x [n, T, d]."""
        y: Tensor = x + self.mlp(self.norm2(x))
        return y

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [n, T, d] -> y [n, T, d]."""
        return self.feed_forward(self.attend(x, bias)[0])


class ViT(nn.Module):
    """Patches and a class token pass through blocks; the class token is classified.

    Args:
        size: of the network.
        image: side of an image, pixels.
        channels: of an image.
        classes: of images.
        mlp_ratio: hidden width of a block's MLP in units of the width.
        stem: 'patch': one convolution per patch; 'conv': 3 x 3 convolutions of stride 2, then one of 1 x 1.

    Raises:
        ValueError: heads do not divide the width, patches do not divide the image, an unknown stem, or a stem 'conv'
            with patches whose side is no power of 2.
    """

    def __init__(self, size: Size, image: int, channels: int, classes: int, mlp_ratio: float, stem: str) -> None:
        super().__init__()
        if stem not in ("patch", "conv"):
            raise ValueError(f"stem={stem!r}: a stem is 'patch' or 'conv'")
        if stem == "conv" and (size.patch < 2 or size.patch & (size.patch - 1)):
            raise ValueError(f"stem='conv' halves the image step by step: patch={size.patch} is not a power of 2")
        if size.width % size.heads:
            raise ValueError(f"width={size.width} is not a multiple of heads={size.heads}")
        if image % size.patch:
            raise ValueError(f"image={image} is not a multiple of patch={size.patch}")
        if size.depth < 1:
            raise ValueError(f"depth={size.depth}: at least one block")
        self.size, self.image, self.channels = size, image, channels
        self.patches = (image // size.patch) ** 2
        one = nn.Conv2d(channels, size.width, size.patch, size.patch)
        self.embed = one if stem == "patch" else convolutions(channels, size)
        self.cls = nn.Parameter(torch.zeros(1, 1, size.width))
        self.position = nn.Parameter(torch.zeros(1, self.patches + 1, size.width))
        hidden = round(mlp_ratio * size.width)
        self.blocks = module_list(Block(size.width, size.heads, hidden) for _ in range(size.depth))
        self.norm, self.head = nn.LayerNorm(size.width, eps=1e-6), nn.Linear(size.width, classes)
        nn.init.trunc_normal_(self.cls, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.apply(initialise)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one image."""
        return (self.channels, self.image, self.image)

    def tokens(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] -> tokens [n, 1 + N, d], the class token first."""
        patches = self.embed(x).flatten(2).transpose(1, 2)  # [n, N, d]
        return torch.cat([self.cls.expand(x.shape[0], -1, -1), patches], 1) + self.position

    def classify(self, x: Tensor) -> Tensor:
        """Tokens [n, T, d], the class token first -> logits [n, K]."""
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] -> logits [n, K]."""
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


def block_macs(net: ViT, tokens: int) -> int:
    """Multiply-accumulates of one block on so many tokens: its linear layers, and both products of attention."""
    return tokens * linear_macs(net.blocks[0]) + 2 * tokens * tokens * net.size.width


def ends_macs(net: ViT) -> int:
    """Multiply-accumulates outside the blocks, of the stem and the classifier."""
    return static_macs(net.embed, (net.channels, net.image, net.image)) + net.head.weight.numel()


def convolutions(channels: int, size: Size) -> nn.Sequential:
    """Images [n, C, H, W] -> [n, d, H / patch, W / patch]: the width doubles up to d as the side is halved."""
    layers: list[nn.Module] = []
    for i in reversed(range(size.patch.bit_length() - 1)):
        width = max(size.width >> i, 1)
        layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, size.width, 1))


def initialise(module: nn.Module) -> None:
    """As the authors do: small weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def vit(
    variant: str = "deit_s",
    image: int = 224,
    channels: int = 3,
    classes: int = 1000,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    patch: int | None = None,
    mlp_ratio: float = 4,
    stem: str = "patch",
) -> ViT:
    """A static vision transformer.

    Args:
        variant: a name of `SIZES`.
        image: side of an image, pixels.
        channels: of an image.
        classes: of images.
        width: d, of a token; None: the variant's, as for the next three.
        depth: blocks.
        heads: of attention.
        patch: side of a patch, pixels.
        mlp_ratio: hidden width of a block's MLP in units of the width.
        stem: 'patch', or 'conv': see `ViT`.

    Raises:
        ValueError: an unknown variant or stem, or sizes that do not fit each other.
    """
    if variant not in SIZES:
        raise ValueError(
            f"variant={variant!r}: known are {', '.join(SIZES)}; width, depth, heads and patch can be changed"
        )
    given = {"width": width, "depth": depth, "heads": heads, "patch": patch}
    size = SIZES[variant]._replace(**{k: v for k, v in given.items() if v is not None})
    return ViT(size, image, channels, classes, mlp_ratio, stem)
