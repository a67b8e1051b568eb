"""What is known of the number of items in a graph decides what ONNX Runtime can fuse."""

from __future__ import annotations

import torch
from onnx import GraphProto

from dynbench.graph import compiled, for_this_machine
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
