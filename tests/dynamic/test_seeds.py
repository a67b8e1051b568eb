"""What a seed gives stays what it is: decisions of published runs can be drawn again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Choice, Exits, Op, Pick, Program, Route, Skip, Trace, Weights, Width
from dynbench.dynamic.sources import edge, synthetic
from dynbench.dynamic.trace import Entry

ITEMS = 9


def words() -> nn.Module:
    """Every word once; what the points compute does not matter here."""
    nothing = nn.Identity()
    leaf, head = Op(nothing, 0), Op(nothing, 1)
    return nn.ModuleList(
        [
            Skip("skip", None, nothing),
            Exits("exits", [nothing] * 3, [nothing] * 3, lambda answer, state, k: answer > 0),
            Route("route", nothing, [None] * 5, 2, lambda scores, chosen: scores),
            Weights("weights", nothing, nothing, nothing, codes=4),
            Width("free", nothing, nothing),
            Width("prefix", nothing, nothing, nested=True),
            Pick("pick", lambda x, there: x, nothing, lambda parts: 2),
            Program("program", nothing, [leaf], [head], (1,), 3),
            Choice("choice", nothing, lambda scores: scores),
        ]
    )


def tables() -> Trace:
    """As if recorded under masking: two tokens of a sample at the Route, three steps at the Exits."""
    long = [[0, 0, -1], [0, 0, -1], [1, 0, 0]]
    short = [[0, 0, -1], [1, 0, 0], [-1, -1, -1]]
    values: dict[tuple[str, tuple[int, ...]], Tensor] = {
        ("skip", ()): torch.zeros(ITEMS, dtype=torch.bool),
        ("exits", (3,)): torch.zeros(3 * ITEMS, dtype=torch.bool),
        ("route", (2,)): torch.zeros(2 * ITEMS, 2, dtype=torch.long),
        ("weights", ()): torch.zeros(ITEMS, dtype=torch.long),
        ("free", ()): torch.zeros(ITEMS, 6, dtype=torch.bool),
        ("prefix", ()): torch.zeros(ITEMS, 6, dtype=torch.bool),
        ("pick", ()): torch.tensor([[0, 4]] * ITEMS),
        ("program", ()): torch.tensor([short if item % 3 else long for item in range(ITEMS)]),
        ("choice", ()): torch.arange(ITEMS),
    }
    entries = {key: Entry(value, torch.ones(len(value), dtype=torch.bool)) for key, value in values.items()}
    return Trace(entries, ITEMS, "stream", frozenset(name for name, _ in values))


DRAWN: list[tuple[dict[str, Any], str]] = [
    ({}, "3d25a3c59a8722a7"),
    ({"keep_rate": 0.8, "seed": 7}, "97dd2ef002a77111"),
    ({"keep_rate": [0.3, [0.9, 0.5], 0.6, 0.2], "seed": 1}, "cd14446720b2c8d4"),
    ({"item_correlation": 0.5, "layer_correlation": 0.25, "expert_skew": 1.5, "seed": 2}, "9c20ec447b3ffdee"),
]
EDGES = {"all": "3d4e90bbf94d006d", "none": "bce329c2f13f5b68", "one": "da0f85e144ba2f53", "random": "3d25a3c59a8722a7"}


@pytest.mark.parametrize(("asked", "known"), DRAWN)
def test_a_seed_always_gives_the_same_decisions(asked: dict[str, Any], known: str) -> None:
    assert synthetic(tables(), words(), **asked).hash() == known


@pytest.mark.parametrize("kind", EDGES)
def test_edge_traces_are_always_the_same(kind: str) -> None:
    assert edge(tables(), words(), kind).hash() == EDGES[kind]
