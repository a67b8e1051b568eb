"""ToMe: in every block the r most similar pairs of tokens are merged into one token each, without any training.

Bolya, Fu, Dai, Zhang, Feichtenhofer, Hoffman, "Token Merging: Your ViT but Faster", ICLR 2023 (arXiv 2210.09461). From
the authors' code: between attention and MLP, tokens are assigned alternately to sets A and B; each token of A is
matched with the token of B whose mean key is most similar; the r best pairs are merged, weighted by the number of
patches that a token represents; and attention is proportional to that size. r is given, so shapes are static and
nothing waits for a decision.

Nothing here is random. On a GPU, merged tokens are summed in no fixed order, which affects the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynbench.dynamic import Choice, Trace
from dynbench.models.accounting import linear_macs
from dynbench.models.vit import Block, ViT, block_macs, ends_macs, vit

PAPER = "Bolya et al., Token Merging: Your ViT but Faster, ICLR 2023"
PROVENANCE = "matching, merging and proportional attention as in the authors' code"


class Similarity(nn.Module):
    """Cosines of the keys of set A and set B, mean over heads; the class token, first of A, is never merged."""

    def forward(self, keys: Tensor) -> Tensor:
        """keys [n, h, T, d/h] -> [n, Ta, Tb], Ta = ceil(T / 2), Tb = floor(T / 2)."""
        k = nn.functional.normalize(keys.mean(1), dim=-1)  # [n, T, d/h]
        scores = k[:, ::2] @ k[:, 1::2].transpose(1, 2)
        return scores.index_fill_(1, torch.zeros(1, dtype=torch.long, device=scores.device), -math.inf)


def match(r: int, scores: Tensor) -> Tensor:
    """Bipartite soft matching (section 3, "Bipartite Soft Matching", steps 1 to 4).

    Args:
        r: pairs to merge.
        scores: [n, Ta, Tb].

    Returns:
        The pairs [n, r] long, ascending: that of tokens a of A and b of B is a * Tb + b.
    """
    best, partner = scores.max(-1)  # [n, Ta]
    merged = best.argsort(dim=1, descending=True, stable=True)[:, :r]
    return (merged * scores.shape[2] + partner.gather(1, merged)).sort(1).values


def merge(x: Tensor, size: Tensor | None, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Merges pairs of tokens into means over the patches that they represent.

    Args:
        x: tokens [n, T, d].
        size: number of patches that each represents [n, T]; None: one each.
        pairs: the result of `match` [n, r].

    Returns:
        Tokens [n, T - r, d], the unmerged ones of A first, and their sizes [n, T - r].
    """
    n, tokens, width = x.shape
    r = pairs.shape[1]
    of_a, of_b = (tokens + 1) // 2, tokens // 2
    merged, into = pairs // of_b, pairs % of_b
    token = torch.arange(of_a, device=x.device).expand(n, -1)
    merged_last = token.scatter(1, merged, torch.full_like(merged, of_a)).sort(1).values
    kept = merged_last[:, : of_a - r]
    first = torch.arange(0, n * tokens, tokens, device=x.device).unsqueeze(1)  # first row of each image
    new_first = torch.arange(0, n * (tokens - r), tokens - r, device=x.device).unsqueeze(1)
    if size is None:
        size = x.new_ones(n, tokens)
    else:
        x = x * size.unsqueeze(-1)
    x, size = x.flatten(0, 1), size.flatten()
    rows_b = torch.arange(1, tokens, 2, device=x.device).expand(n, -1)
    rows = (torch.cat([2 * kept, rows_b], 1) + first).flatten()
    gone, to = (2 * merged + first).flatten(), (of_a - r + into + new_first).flatten()
    y = x.index_select(0, rows).index_add_(0, to, x.index_select(0, gone))
    new_size = size.index_select(0, rows).index_add_(0, to, size.index_select(0, gone))
    return (y / new_size.unsqueeze(-1)).view(n, tokens - r, width), new_size.view(n, tokens - r)


class MergingBlock(nn.Module):
    """A block that merges r pairs between its halves."""

    def __init__(self, name: str, block: Block, r: int) -> None:
        super().__init__()
        self.block, self.r = block, r
        self.match = Choice(name, Similarity(), partial(match, r), gate=True, listed=True) if r else None

    def forward(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens x [n, T, d], their sizes [n, T] -> [n, T - r, d], [n, T - r]."""
        bias = None if size is None else size.log()[:, None, None]  # proportional attention, eq. 1
        x, keys = self.block.attend(x, bias)
        pairs = None if self.match is None else self.match(keys)
        if pairs is not None:
            x, size = merge(x, size, pairs)
        return self.block.feed_forward(x), size


class ToMe(nn.Module):
    """A vision transformer with token merging.

    Args:
        net: the network without merging, as it was trained.
        r: pairs to merge in each block.

    Raises:
        ValueError: not one number per block, or one below 0.
    """

    def __init__(self, net: ViT, r: Sequence[int]) -> None:
        super().__init__()
        if len(r) != len(net.blocks) or min(r) < 0:
            raise ValueError(f"r={list(r)}: {len(net.blocks)} blocks merge 0 pairs or more each")
        self.vit = net
        blocks, tokens = [], net.patches + 1
        for k, (block, pairs) in enumerate(zip(net.blocks, r, strict=True)):
            pairs = min(pairs, (tokens - 1) // 2)  # the code's bound: at most half of the tokens that may be merged
            blocks.append(MergingBlock(f"merge{k}", block, pairs))
            tokens -= pairs
        self.merging = blocks  # a plain list: the weights are those of the network
        self.matches = nn.ModuleList(b.match for b in blocks if b.match is not None)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one image."""
        return self.vit.input_shape(default)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, C, H, W] -> logits [n, K]."""
        x, size = self.vit.tokens(x), None
        for block in self.merging:
            x, size = block(x, size)
        return self.vit.classify(x)


def accounted_macs(model: ToMe, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """Every product on the remaining tokens; the matching itself, less than a percent, is not counted."""
    tokens, total, mlp = model.vit.patches + 1, ends_macs(model.vit), linear_macs(model.vit.blocks[0].mlp)
    for block in model.merging:
        total += block_macs(model.vit, tokens) - block.r * mlp  # pairs are merged between the block's halves
        tokens -= block.r
    return float(total), "all products on the tokens that are left, attention included, the matching not"


def schedule(depth: int, r: int, inflect: float) -> list[int]:
    """The number of pairs merged by each block: r, or linearly from r (1 - inflect) to r (1 + inflect).

    Args:
        depth: blocks.
        r: mean pairs.
        inflect: 0: constant; -1: the paper's decreasing schedule; 1: increasing.
    """
    low = int(r * (1 - inflect))
    step = 2 * (r - low) / max(depth - 1, 1)
    return [int(low + step * k) for k in range(depth)]


def tome(
    variant: str = "deit_s",
    r: int | Sequence[int] = 13,
    inflect: float = 0.0,
    **net: Any,
) -> ToMe:
    """A DeiT with token merging.

    Args:
        variant: a name of `dynbench.models.vit.SIZES`.
        r: pairs merged by every block, or a list with a number per block; at most half of the tokens are merged.
        inflect: for a single r: 0: constant, -1: decreasing to 0, 1: increasing from 0.
        **net: other arguments of `dynbench.models.vit.vit`: image, channels, classes, width, depth, heads, patch,
            mlp_ratio, stem.

    Raises:
        ValueError: an unknown variant, sizes that do not fit each other, an r below 0 or not one per block, or an
            inflection outside -1 to 1.
    """
    if not -1 <= inflect <= 1:
        raise ValueError(f"inflect={inflect} lies outside -1 to 1")
    made = vit(variant, **net)
    return ToMe(made, schedule(len(made.blocks), r, inflect) if isinstance(r, int) else r)
