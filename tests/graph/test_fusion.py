"""What is known of the number of items in a graph decides what ONNX Runtime can fuse."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from onnx import GraphProto

from dynbench.graph import Graph, compiled, compiled_twice, for_this_machine, prove
from dynbench.models.skipnet import skipnet


def operators(graph: GraphProto) -> list[str]:
    """Of a graph and of the branches in it."""
    found = [node.op_type for node in graph.node]
    for node in graph.node:
        for attribute in node.attribute:
            found += operators(attribute.g) if attribute.HasField("g") else []
    return found


def test_sums_and_activations_of_skipped_blocks_are_part_of_their_convolutions() -> None:
    torch.manual_seed(0)
    model, x = skipnet(20).eval(), torch.randn(8, 3, 32, 32)
    rates = dict.fromkeys((point.name for point in model.skips), 0.95)
    found = operators(for_this_machine(compiled(model, x, single=False, rates=rates).model).graph)
    assert found.count("Conv") > 2 * len(rates)
    assert any(point.shared is not None for point in model.skips)
    assert "Relu" not in found


def kinds(graph: Graph) -> tuple[Counter[str], Counter[str]]:
    """How many operators of each kind: portable, and as they run here."""
    return Counter(operators(graph.model.graph)), Counter(operators(for_this_machine(graph.model).graph))


@pytest.mark.parametrize("single", [True, False])
def test_traced_once_a_graph_is_the_one_that_would_have_been_traced_by_itself(single: bool) -> None:
    torch.manual_seed(0)
    model, x = skipnet(20).eval(), torch.randn(7, 3, 32, 32)
    learned, replaying = compiled_twice(model, x, single=single)
    assert not learned.replays and replaying.replays
    assert [i.name for i in learned.model.graph.input] == ["x"]
    assert len(replaying.model.graph.input) == 1 + len(model.skips)
    assert kinds(learned) == kinds(compiled(model, x, single=single))
    assert kinds(replaying) == kinds(compiled(model, x, single=single, replay=True))
    for graph in (learned, replaying):
        assert [c for c in prove(model, graph, x, (1, 2, 7)) if not c.ok] == []


@pytest.mark.parametrize("gates", [True, False])
def test_sums_are_part_of_convolutions_where_decisions_are_inputs_too(gates: bool) -> None:
    torch.manual_seed(0)
    model, x = skipnet(20).eval(), torch.randn(8, 3, 32, 32)
    rates = dict.fromkeys((point.name for point in model.skips), 0.95)
    found = kinds(compiled(model, x, single=False, replay=True, gates=gates, rates=rates))[1]
    assert found["Conv"] > 2 * len(rates) and found["Relu"] == 0


def test_a_shortcut_is_added_inside_the_branch_of_a_single_item() -> None:
    torch.manual_seed(0)
    model, x = skipnet(20).eval(), torch.randn(1, 3, 32, 32)
    flat = compiled(model, x, single=True)
    found = operators(for_this_machine(flat.model).graph)
    assert found.count("Add") == found.count("Relu") == 0  # part of convolutions and of the gates' LSTM cells
    shortcuts = [p.shared for p in model.skips if p.shared is not None]
    # stem, two of the first block, two of each body; a shortcut in the body and in what stands for it
    assert shortcuts
    assert operators(flat.model.graph).count("Conv") == 3 + 2 * len(model.skips) + 2 * len(shortcuts)
