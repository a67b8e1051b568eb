"""Static networks of the usual kinds, small; each factory returns (network, some inputs)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o)
        self.downsample = None if i == o and stride == 1 else nn.Conv2d(i, o, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return torch.relu(y)


class ResNet(nn.Module):
    """As torchvision writes it: functions between the modules of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.layer1 = nn.Sequential(Block(4, 4), Block(4, 4))
        self.layer2 = nn.Sequential(Block(4, 8, 2), Block(8, 8))
        self.layer3 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def resnet() -> tuple[nn.Module, Inputs]:
    return ResNet(), (torch.randn(6, 3, 16, 16),)


def sequential() -> tuple[nn.Module, Inputs]:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)), (torch.randn(6, 8),)


class Encoder(nn.Module):
    """A class token before the others, and torch's own encoder, which torch.fx cannot trace."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.out, self.pool = nn.TransformerEncoder(layer, 3), nn.Linear(8, 5), pool
        self.cls = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.encoder(torch.cat([self.cls.expand(n, -1, -1), x], 1))
        return self.out(x[:, 0] if self.pool == "first" else x.mean(1))


def encoder_first() -> tuple[nn.Module, Inputs]:
    return Encoder("first"), (torch.randn(6, 4, 8),)


def encoder_mean() -> tuple[nn.Module, Inputs]:
    return Encoder("mean"), (torch.randn(6, 4, 8),)


class Masked(nn.Module):
    """A layer as in transformers: it takes a mask and position embeddings besides, and returns a tuple."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.q, self.v = nn.Linear(d, d), nn.Linear(d, d)

    def forward(
        self, states: Tensor, mask: Tensor | None = None, positions: tuple[Tensor, float] | None = None
    ) -> tuple[Tensor, None]:
        assert positions is not None
        table, scale = positions
        scores = self.q(states + scale * table) @ states.transpose(1, 2)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        return states + scores.softmax(-1) @ self.v(states), None


class Decoder(nn.Module):
    """Layers in a loop with control flow, which torch.fx cannot trace, and a mask for each item."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(11, d), nn.Embedding(16, d)
        self.layers = nn.ModuleList(Masked(d) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 5)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        if ids.max() > 10:
            raise ValueError("no such token")
        x, table = self.embed(ids), self.positions.weight[: ids.shape[1]]
        wide = None if mask is None else mask[:, None, :].expand(-1, ids.shape[1], -1)
        for layer in self.layers:
            x = layer(x, mask=wide, positions=(table, 0.5))[0]
        return self.head(self.norm(x)[:, -1])


def decoder() -> tuple[nn.Module, Inputs]:
    mask = torch.ones(6, 4, dtype=torch.long)
    mask[0, :2] = mask[3, :1] = 0
    return Decoder(), (torch.randint(0, 11, (6, 4)), mask)


class Unet(nn.Module):
    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.up, self.out, self.traceable = Add(4), nn.Linear(4, 5), traceable

    def forward(self, x: Tensor) -> Tensor:
        if not self.traceable and bool(x.isnan().any()):
            raise ValueError("not a number")
        a = self.down1(x)
        b = self.down2(a)
        return self.out(self.up(b, a))


class Add(nn.Module):
    """Two feature maps, added and pooled."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(d, d, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mix(x + y).mean((2, 3))


class Mixture(nn.Module):
    """A block of experts as people write it: x [n, T, d] or [n, d]."""

    def __init__(self, d: int, experts: int, k: int, over: str, shared: bool = False) -> None:
        super().__init__()
        self.gate, self.top_k, self.over = nn.Linear(d, experts, bias=False), k, over
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d)) for _ in range(experts))
        self.shared = nn.Linear(d, d) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        scores = self.gate(flat)
        weights, chosen = scores.softmax(-1).topk(self.top_k, -1)
        if self.over == "chosen":
            weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == e)
            y = y.index_add(0, rows, expert(flat[rows]) * weights[rows, slot, None])
        if self.shared is not None:
            y = y + self.shared(flat)
        return y.view_as(x)


class Tokens(nn.Module):
    """A network with two mixtures of experts."""

    def __init__(self, over: str, shared: bool = False) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList([Mixture(8, 4, 2, over), Mixture(8, 4, 2, over, shared)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x))
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)
