"""A small GPT-style decoder whose feed-forward layers are sparse mixtures of experts, and its dense twin.

The decoder is that of Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2, 2019), with
RMSNorm. Routing follows Jiang et al., "Mixtral of Experts" (arXiv 2401.04088): top-k, softmax over the chosen experts.
Load balance, capacity and precision follow Fedus, Zoph, Shazeer, "Switch Transformers", JMLR 2022 (arXiv 2101.03961).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import DecisionPoint, Each, Route, Trace
from dynbench.models.accounting import linear_macs
from dynbench.models.typed import module_list

PAPER = "Jiang et al., Mixtral of Experts, 2024; Fedus et al., Switch Transformers, JMLR 2022"
PROVENANCE = "reconstruction: routing and losses as in the papers, at a size that trains on a CPU"


class Attention(nn.Module):
    """Causal self-attention: x [n, T, d]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, T, d] -> y [n, T, d]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [n, h, T, d/h]
        y: Tensor = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = self.out(y.transpose(1, 2).flatten(2))
        return y


class FeedForward(nn.Module):
    """E(x) = W2 gelu(W1 x): one expert, or the dense twin's layer; x [..., d]."""

    def __init__(self, width: int, ff: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, ff, bias=False), nn.Linear(ff, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> y [..., d]."""
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y


class Router(nn.Linear):
    """h(x) = W_r x, computed in at least float32 (Switch, section 2.4): x [n, d] -> scores [n, E]."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__(width, experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, d] -> scores [n, E], at least float32."""
        precise = torch.promote_types(x.dtype, torch.float32)
        mixed = torch.is_autocast_enabled(x.device.type)  # autocast would halve the precision again
        with torch.autocast(x.device.type, enabled=False) if mixed else nullcontext():
            return F.linear(x.to(precise), self.weight.to(precise))

    def weigh(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """softmax(Top-k(x W_r)) (Mixtral, section 2.1): chosen [n, k] -> [n, k]; 0 for a dropped choice (-1)."""
        w = scores.gather(1, chosen.clamp(min=0)).softmax(-1)
        return (w * (chosen >= 0)).to(self.weight.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)): x [n, T, d]."""

    def __init__(self, width: int, heads: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width), Attention(width, heads)
        self.norm2, self.feed_forward = nn.RMSNorm(width), feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """x [n, T, d] -> y [n, T, d]; a token dropped by its experts passes through the residual."""
        x = x + self.attention(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        return x


class GPT(nn.Module):
    """Token and position embeddings, blocks, one linear layer.

    Args:
        feed_forwards: one layer `x [n, T, d] -> [n, T, d]` per block.
        width: d.
        heads: of attention.
        context: longest sequence.
        vocab: number of tokens; 256: bytes.
        routes: the mixtures of experts in the feed-forward layers.
    """

    def __init__(
        self,
        feed_forwards: Sequence[nn.Module],
        width: int,
        heads: int,
        context: int,
        vocab: int,
        routes: Sequence[Route] = (),
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} is not a multiple of heads={heads}")
        self.context, self.routes = context, tuple(routes)
        self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = module_list(Block(width, heads, ff) for ff in feed_forwards)
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocab, bias=False)
        for m in self.modules():
            if isinstance(m, nn.Linear):  # Switch, section 2.4: scale 0.1 in place of 1
                nn.init.trunc_normal_(m.weight, std=math.sqrt(0.1 / m.in_features))
            elif isinstance(m, nn.Embedding):
                nn.init.normal_(m.weight, std=0.02)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [T] tokens."""
        return (self.context,)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [n, T] long, T at most the context -> logits [n, T, vocab]."""
        x: Tensor = self.token(tokens) + self.position.weight[: tokens.shape[1]]  # [n, T, d]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def moe_gpt(
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    experts: int = 8,
    k: int = 2,
    context: int = 64,
    vocab: int = 256,
    capacity_factor: float | None = None,
    ff_multiple: float = 1,
) -> GPT:
    """The decoder with a mixture of experts in every block; the item of a decision is the token.

    Args:
        layers: blocks.
        width: d, of the residual stream.
        heads: of attention.
        experts: per block.
        k: experts per token.
        context: longest sequence.
        vocab: number of tokens; 256: bytes.
        capacity_factor: None: dropless (Mixtral). Else an expert takes at most ceil(factor * k * tokens / experts)
            tokens of a batch (Switch, eq. 3, for k choices) and drops the rest: -1 in the trace.
        ff_multiple: an expert's hidden width in units of `width`.

    Raises:
        ValueError: heads do not divide the width, or k does not fit the experts.
    """
    routes = []
    for layer in range(layers):
        router = Router(width, experts)
        each = [FeedForward(width, round(ff_multiple * width)) for _ in range(experts)]
        # y = sum_i softmax(Top-k(x W_r))_i E_i(x)
        routes.append(Route(f"moe{layer}", router, each, k, router.weigh, capacity_factor=capacity_factor))
    return GPT([Each(route) for route in routes], width, heads, context, vocab, routes)


def dense_gpt(
    layers: int = 4, width: int = 128, heads: int = 4, context: int = 64, vocab: int = 256, ff_multiple: float = 2
) -> GPT:
    """The dense twin of equal active parameters: one feed-forward layer as wide as the k experts of a token together.

    Args:
        layers: blocks.
        width: d, of the residual stream.
        heads: of attention.
        context: longest sequence.
        vocab: number of tokens.
        ff_multiple: hidden width in units of `width`: k times that of `moe_gpt`.

    Raises:
        ValueError: heads do not divide the width.
    """
    feed_forwards = [FeedForward(width, round(ff_multiple * width)) for _ in range(layers)]
    return GPT(feed_forwards, width, heads, context, vocab)


def load_balancing_loss(scores: Tensor, k: int, alpha: float = 1e-2) -> Tensor:
    """alpha N sum_i f_i P_i (Switch, eq. 4 to 6): alpha for an even spread of tokens, up to alpha N / k if all agree.

    Args:
        scores: [n, N] of one router.
        k: experts per token.
        alpha: weight of the loss.

    Returns:
        A scalar. f_i, the share of choices of expert i before any is dropped, has no gradient.
    """
    n, experts = scores.shape
    chosen = scores.topk(k, dim=-1).indices  # [n, k]
    f = chosen.flatten().bincount(minlength=experts).to(scores.dtype) / (n * k)  # eq. 5
    p = scores.softmax(-1).mean(0)  # eq. 6
    return alpha * experts * (f * p).sum()  # eq. 4


class Balance:
    """Sums the load-balancing losses of a forward pass: `Execution(strategy, observe=balance)`.

    For strategies that give a router its whole batch at once, not for `per_sample`.

    Args:
        routes: the mixtures of experts.
        alpha: weight of the loss (Switch: 1e-2).

    Attributes:
        loss: sum over the routers so far, with its graph.
    """

    def __init__(self, routes: Iterable[Route], alpha: float = 1e-2) -> None:
        self.alpha = alpha
        self.loss: Tensor | float = 0.0
        self._k = {route.name: route.k for route in routes}

    def __call__(self, point: DecisionPoint, scores: Tensor, decision: Tensor) -> None:
        """Called by the execution after each decision."""
        if point.name in self._k:
            self.loss = self.loss + load_balancing_loss(scores, self._k[point.name], self.alpha)


def accounted_macs(model: GPT, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the papers count: active parameters, one MAC each per token; attention between positions is left out.

    Embeddings are looked up, not multiplied; a dropped token has no expert.
    """
    (tokens,) = shape
    active = float(linear_macs(model))
    for route in model.routes:
        value, reached = trace.entries[route.name, (tokens,)]  # [items * tokens, k]
        used = float((value[reached] >= 0).double().sum(1).mean())  # experts per token
        sizes = [sum(p.numel() for p in expert.parameters()) for expert in route.experts if expert is not None]
        active -= sum(sizes) * (1 - used / len(sizes))
    return tokens * active, "active parameters times tokens, attention between positions not counted"
