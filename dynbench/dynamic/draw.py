"""What made-up decisions are drawn with: random numbers that items, and points, have in common to a given degree."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynbench.dynamic.trace import Entry


@dataclass(frozen=True, eq=False)
class Draw:
    """The random numbers of one synthetic trace.

    All come from one generator, so that a seed always gives the same decisions as long as the calls and their order
    stay the same.

    Attributes:
        items: samples of the stream.
        generator: where the numbers come from.
        by_item: [items, 1] standard normal, what all points have in common for an item.
        taste: [items, 1, options] uniform, the same for the options of a Route, say; as wide as the point with most.
        item_correlation: share that all items have in common at a point, 0 to 1.
        layer_correlation: share that all points have in common for an item, 0 to 1.
        skew: Zipf exponent s: option e is drawn with a probability proportional to 1 / (e + 1)^s.
    """

    items: int
    generator: torch.Generator
    by_item: Tensor
    taste: Tensor
    item_correlation: float = 0.0
    layer_correlation: float = 0.0
    skew: float = 0.0

    @classmethod
    def seeded(
        cls,
        seed: int,
        items: int,
        options: int,
        *,
        item_correlation: float = 0.0,
        layer_correlation: float = 0.0,
        skew: float = 0.0,
    ) -> Draw:
        """For a stream of so many items and points of at most so many options."""
        generator = torch.Generator().manual_seed(seed)
        by_item = torch.randn(items, 1, generator=generator)
        taste = torch.rand(items, 1, options, generator=generator)
        return cls(items, generator, by_item, taste, item_correlation, layer_correlation, skew)

    def visits(self, like: Entry) -> int:
        """How often each sample of a table comes to the point: the product of its coordinates below the sample."""
        return like.reached.numel() // max(self.items, 1)

    def uniform(self, numbers: int) -> Tensor:
        """Correlated uniform numbers from a Gaussian copula: `uniform(v) < rate` has exactly that rate.

        Returns:
            [items, numbers] float64, between 0 and 1.
        """
        by_layer = torch.randn(1, numbers, generator=self.generator)
        own = torch.randn(self.items, numbers, generator=self.generator)
        own_share = max(0.0, 1.0 - self.item_correlation - self.layer_correlation)
        mixed = (
            self.item_correlation**0.5 * by_layer + self.layer_correlation**0.5 * self.by_item + own_share**0.5 * own
        )
        return torch.special.ndtr(mixed.double())

    def choose(self, options: int, k: int, visits: int) -> Tensor:
        """k different ones of so many options, by Gumbel top-k; a correlation is the probability to follow the others.

        Returns:
            [items * visits, k] long, the most preferred first.
        """
        own = torch.rand(self.items, visits, options, generator=self.generator)
        by_layer = torch.rand(1, 1, options, generator=self.generator)
        source = torch.rand(self.items, visits, 1, generator=self.generator)
        noise = torch.where(source < self.item_correlation + self.layer_correlation, self.taste[..., :options], own)
        noise = torch.where(source < self.item_correlation, by_layer, noise).double().clamp(1e-9, 1 - 1e-9)
        weight = torch.arange(1, options + 1, dtype=torch.float64) ** -self.skew
        return (weight.log() - torch.log(-torch.log(noise))).topk(k, dim=-1).indices.flatten(0, 1)

    def apart(self, options: int) -> Draw:
        """For a point whose options have nothing in common with those of others, and no order: no skew either."""
        # Nothing follows this taste, but what a seed gives from here on depends on its having been drawn.
        taste = torch.rand(self.items, 1, options, generator=self.generator)
        return replace(self, taste=taste, layer_correlation=0.0, skew=0.0)
