"""How right the answers are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynbench.store.schema import Accuracy


def accuracy(answers: Tensor, labels: Tensor) -> Accuracy:
    """`bits_per_byte` where every position of an item has a label, else `top1`."""
    return bits_per_byte(answers, labels) if labels.dim() > 1 else top1(answers, labels)


def top1(scores: Tensor, labels: Tensor) -> Accuracy:
    """Share of items whose highest score is their label.

    Args:
        scores: [n, classes].
        labels: [n] long.
    """
    right = (scores.argmax(-1).cpu() == labels.cpu()).double().mean().item()
    return Accuracy(value=right, metric="top-1 accuracy", items=labels.shape[0])


def bits_per_byte(logits: Tensor, labels: Tensor) -> Accuracy:
    """Mean negative log2-probability of the next byte; a model that guesses evenly has 8.

    Args:
        logits: [n, T, 256].
        labels: [n, T] long, the next bytes.
    """
    nats = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten().to(logits.device))
    return Accuracy(
        value=nats.item() / math.log(2), metric="bits per byte", higher_is_better=False, items=labels.shape[0]
    )
