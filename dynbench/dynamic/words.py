"""What a model decides, in words."""

from __future__ import annotations

from torch import nn

from dynbench.dynamic.each import Each
from dynbench.dynamic.point import VAGUE, DecisionPoint, points


def actions(model: nn.Module) -> list[str]:
    """What a model's decision points do, as predicates of one sentence, in the order in which it names them.

    Returns:
        Such as ['uses 2 of 8 experts per token', 'leaves early']; each once; none of a model without points.
    """
    parts = {id(inner) for each in model.modules() if isinstance(each, Each) for inner in each.modules()}

    def said(point: DecisionPoint) -> tuple[int, str]:
        return point.action("token" if id(point) in parts else "item")

    found = sorted({said(point) for point in points(model).values()})
    definite = [text for rank, text in found if rank < VAGUE]
    return definite or [text for _, text in found[:1]]
