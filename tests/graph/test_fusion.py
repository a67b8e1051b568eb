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
    with_shortcut = [point for point in model.skips if point.shared is not None]
    assert found.count("Relu") == 2 * len(with_shortcut)  # their shortcut comes from outside, in two branches each
