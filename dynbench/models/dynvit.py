"""DynamicViT: tokens that a predictor finds uninformative are dropped at three places, the same number in every image.

Rao, Zhao, Liu, Lu, Zhou, Hsieh, "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS
2021 (arXiv 2106.02034). From the authors' code: the predictor and its places, how many tokens stay (floor of the ratio
times the patches of the image), the attention mask and the training losses. *Which* tokens stay depends on the image,
*how many* does not: shapes are static, nothing waits for a decision, and saved computation can become saved time.
Counting tools applied to the masked form used in training report no saving; here that form is the strategy `masking`.

Ours: a network of any size can be built. Distillation is from the network that training starts from, as in the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Pick, Trace
from dynbench.models.accounting import linear_macs
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list
from dynbench.models.vit import Block, ViT, block_macs, ends_macs, initialise, vit

PAPER = "Rao et al., DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification, NeurIPS 2021"
PROVENANCE = "structure, predictors and losses as in the authors' code"

EPS = 1e-6


class Predictor(nn.Module):
    """Scores a token from its features and the mean over the remaining tokens (section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local = width // 2
        self.enter = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.out = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
            nn.LogSoftmax(-1),
        )
        self.apply(initialise)

    def both(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Patches x [n, N, d], present [n, N] in 0..1 -> log-probabilities of keeping and dropping [n, N, 2]."""
        z = self.enter(x)
        local, rest = z.split((self.local, z.shape[-1] - self.local), -1)
        if present is None:
            overall = rest.mean(1, keepdim=True)
        else:
            p = present.unsqueeze(-1).to(rest.dtype)
            overall = (rest * p).sum(1, keepdim=True) / p.sum(1, keepdim=True).clamp(min=EPS)
        scores: Tensor = self.out(torch.cat([local, overall.expand_as(rest)], -1))
        return scores

    def forward(self, x: Tensor, there: Tensor | None) -> Tensor:
        """Tokens x [n, 1 + N, d], the class token first; places `there` [n, 1 + N'], None: all -> scores [n, N]."""
        present = None if there is None else present_at(there, x.shape[1])[:, 1:]
        return self.both(x[:, 1:], present)[..., 0]


def present_at(there: Tensor, tokens: int) -> Tensor:
    """Places [n, k] -> [n, tokens] bool: which tokens are present."""
    none = torch.zeros(there.shape[0], tokens, dtype=torch.bool, device=there.device)
    return none.scatter(1, there, True)


class Rest(nn.Module):
    """The blocks up to the next pruning followed by that pruning and the rest, or by the classifier."""

    def __init__(self, blocks: Sequence[nn.Module], then: nn.Module) -> None:
        super().__init__()
        self.blocks, self.then = nn.ModuleList(blocks), then

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """Tokens [n, T, d], present ones at places `there`, None: all -> logits [n, K]."""
        bias = None if there is None else present_at(there, x.shape[1])[:, None, None]  # [n, 1, 1, T]
        for block in self.blocks:
            x = block(x, bias)
        logits: Tensor = self.then(x, there)
        return logits


class Classify(nn.Module):
    """Classifies the class token."""

    def __init__(self, net: ViT) -> None:
        super().__init__()
        self.norm, self.head = net.norm, net.head

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        """Tokens [n, T, d] -> logits [n, K]."""
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


class DynamicViT(nn.Module):
    """A vision transformer with token pruning.

    Args:
        net: the network without pruning.
        ratio: rho; after the s-th pruning floor(rho^s N) of the N patches are left.
        places: the blocks before which tokens are pruned.

    Raises:
        ValueError: a ratio outside 0 to 1, or places that are not blocks in ascending order.
    """

    def __init__(self, net: ViT, ratio: float, places: Sequence[int]) -> None:
        super().__init__()
        depth = len(net.blocks)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio}: the share of tokens that stay is above 0 and at most 1")
        if not places or list(places) != sorted(set(places)) or not 0 <= places[0] <= places[-1] < depth:
            raise ValueError(f"places={list(places)}: blocks in ascending order, from 0 to {depth - 1}")
        self.vit, self.ratio, self.places = net, ratio, tuple(places)
        self.left = [max(int(net.patches * ratio ** (s + 1)), 1) for s in range(len(self.places))]
        self.predictors = module_list(Predictor(net.size.width) for _ in self.places)
        bounds = [0, *self.places, depth]
        then: nn.Module = Classify(net)
        for s in reversed(range(len(self.places))):
            body = Rest(net.blocks[bounds[s + 1] : bounds[s + 2]], then)
            left = self.left[s]
            then = Pick(f"prune{s}", self.predictors[s], body, lambda _, left=left: left, always=1)  # type: ignore[misc]
        self.rest = Rest(net.blocks[: self.places[0]], then)
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one image."""
        return self.vit.input_shape(default)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] -> logits [n, K]."""
        logits: Tensor = self.rest(self.vit.tokens(x))
        return logits

    def masked(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """The form for training (section 3.3): no token is dropped, a mask with a gradient marks those present.

        Args:
            x: images [n, C, H, W].

        Returns:
            logits [n, K]; the last tokens of the patches, normalised [n, N, d]; the final mask [n, N]; the mask after
            each pruning, [n, N] each.
        """
        x = self.vit.tokens(x)
        n, t, _ = x.shape
        left, decided = x.new_ones(n, t - 1), []
        for k, block in enumerate(self.vit.blocks):
            if k in self.places:
                predictor = self.predictors[self.places.index(k)]
                log_p = predictor.both(x[:, 1:], left)
                left = nn.functional.gumbel_softmax(log_p.float(), hard=True)[..., 0] * left
                decided.append(left)
            x = soft_block(block, x, torch.cat([x.new_ones(n, 1), left], 1)) if decided else block(x)
        x = self.vit.norm(x)
        return self.vit.head(x[:, 0]), x[:, 1:], left, decided


def soft_block(block: Block, x: Tensor, present: Tensor) -> Tensor:
    """A block whose softmax leaves out absent tokens (eq. 10 and 11); each token attends to itself.

    Args:
        block: of the network.
        x: tokens [n, T, d].
        present: [n, T] in 0..1, with a gradient.
    """
    attention = block.attention
    q, k, v = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5  # [n, h, T, T]
    t = x.shape[1]
    itself = torch.eye(t, dtype=scores.dtype, device=x.device)
    g = present[:, None, None].to(scores.dtype)
    g = g + (1 - g) * itself  # G, eq. 10
    weight = (scores - scores.amax(-1, keepdim=True)).exp() * g
    weight = (weight + EPS / t) / (weight.sum(-1, keepdim=True) + EPS)  # eq. 11, with the code's epsilon
    y = attention.out((weight.to(v.dtype) @ v).transpose(1, 2).flatten(2))
    return block.feed_forward(x + y)


def accounted_macs(model: DynamicViT, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the paper counts: every product of the form without masks, predictors included; the same for all images."""
    net = model.vit
    patches, total = net.patches, ends_macs(net)
    for k in range(net.size.depth):
        if k in model.places:
            stage = model.places.index(k)
            total += patches * linear_macs(model.predictors[stage])
            patches = model.left[stage]
        total += block_macs(net, patches + 1)
    return float(total), "all products on the tokens that are left, attention and predictors included"


def dynvit(
    variant: str = "deit_s",
    ratio: float = 0.7,
    places: Sequence[int] = (3, 6, 9),
    **net: Any,
) -> DynamicViT:
    """A DeiT with token pruning.

    Args:
        variant: a name of `dynbench.models.vit.SIZES`.
        ratio: rho; 0.7 is the paper's own choice.
        places: the blocks before which tokens are dropped.
        **net: other arguments of `dynbench.models.vit.vit`: image, channels, classes, width, depth, heads, patch,
            mlp_ratio, stem.

    Raises:
        ValueError: an unknown variant, sizes that do not fit each other, a ratio outside 0 to 1, or places that are not
            blocks in ascending order.
    """
    return DynamicViT(vit(variant, **net), ratio, places)
