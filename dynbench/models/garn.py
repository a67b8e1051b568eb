"""GARN, also called GAM: two recurrent states, one for where to look, one for what is seen; regions guide the training.

Dai, Kong, Guo, Lee, Liu, Moore, "Recurrent Networks for Guided Multi-Attention Classification", KDD 2020. The abstracts
of the paper and of the first author's thesis are known: the label depends on several regions of interest at once, whose
places are known in training only; in RAM one state must serve two purposes, here a double RNN has one for each; and a
reward from the regions guides the policy. Sizes, the exact reward and the wiring are OUR reconstruction, on top of RAM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynbench.models.ram import RAM, UNIT, Core, accounted_macs

__all__ = ["GARN", "PAPER", "PROVENANCE", "DoubleCore", "accounted_macs", "guidance"]

PAPER = "Dai et al., Recurrent Networks for Guided Multi-Attention Classification, KDD 2020"
PROVENANCE = (
    "reconstruction from the abstracts: two recurrent states fed with the same glimpses, reward for regions found; "
    "sizes are those of RAM"
)


class DoubleCore(nn.Module):
    """Two recurrent states fed with the same glimpse: classes are read from h^c, locations from h^l."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.what, self.where = Core(hidden), Core(hidden)

    def forward(self, g: Tensor, h: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """g [n, hidden], (h^c, h^l) -> (h^c, h^l), each [n, hidden]."""
        what, where = h
        return self.what(g, what), self.where(g.detach(), where)


class GARN(RAM):
    """RAM with a double RNN: l_{t+1} is read from h^l alone, the class from h^c alone.

    Arguments as for `RAM`. The guidance in training is not part of the network: see `guidance`. h^l learns from the
    reward alone, h^c and the glimpse network from the label alone.
    """

    reward_stops = False

    def make_core(self, hidden: int) -> nn.Module:
        """The double RNN."""
        return DoubleCore(hidden)

    def h0(self, n: int, like: Tensor) -> Any:
        """(h^c, h^l) before the first glimpse: zeros, each [n, hidden]."""
        return like.new_zeros(n, self.hidden), like.new_zeros(n, self.hidden)

    def for_place(self, h: Any) -> Tensor:
        """h^l."""
        where: Tensor = h[1]
        return where


def guidance(locations: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Reward 1 for a glimpse whose centre lies in a region that no earlier glimpse has visited, else 0.

    Args:
        locations: [T, n, 2] (x, y) in 1/UNIT of half an image, in the order of the glimpses.
        boxes: [n, R, 4] left, top, right, bottom of each region in pixels, right and bottom exclusive.
        size: (H, W) of the images.

    Returns:
        [T, n] float32.
    """
    height, width = size
    extent = torch.tensor([width, height], device=locations.device)
    pixel = ((locations + UNIT) * extent // (2 * UNIT)).unsqueeze(2)  # [T, n, 1, 2]
    inside = ((pixel >= boxes[..., :2]) & (pixel < boxes[..., 2:])).all(-1)  # [T, n, R]
    before = inside.cumsum(0) - inside.long()  # visits so far
    return (inside & (before == 0)).any(-1).float()
