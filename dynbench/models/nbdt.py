"""NBDT: a neural network whose classifier is read as a decision tree.

Wan, Dunlap, Ho, Yin, Lee, Jin, Petryk, Bargal, Gonzalez, "NBDT: Neural-Backed Decision Trees", ICLR 2021
(arXiv 2004.00221). Details as in the authors' code (alvinwan/neural-backed-decision-trees, nbdt 0.0.4): Ward linkage of
the classifier's raw rows, and a node's logits are means of the class logits below its children.

A null case. The path through the tree depends on the input, but the backbone and the whole classifier are computed for
every input before the first step: the tree only adds work, and nothing can be saved.

Two pitfalls of the authors' code, avoided here except with `as_code`:
    Their soft loss passes probabilities to a cross-entropy that takes logits, which applies softmax twice. It cannot
    approach 0 and its gradients are weak. As written in the paper it is -log p(y); then the two losses are the same up
    to a factor: the nodes' cross-entropies sum to the logarithm of the product of their probabilities.
    Their hard loss multiplies by the tree's weight omega twice.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Choice, Loop, Trace
from dynbench.models.accounting import static_macs
from dynbench.models.resnet import BlockKind, ResNet, architecture
from dynbench.models.sharing import shared_once

PAPER = "Wan et al., NBDT: Neural-Backed Decision Trees, ICLR 2021"
PROVENANCE = "paper; details as in the authors' code, without its doubled softmax and its squared weight"

State = tuple[Tensor, Tensor]  # logits z [n, C] and the current node of each input [n]; classes are 0 to C - 1


def induced_hierarchy(rows: Tensor) -> Tensor:
    """The binary tree of agglomerative clustering, Ward linkage, Euclidean distance (section 3.1, figure 2).

    Args:
        rows: W [C, d] of the classifier, not normalised.

    Returns:
        [C - 1, 2] long: the children of inner node C + i, created by the i-th merge; below C they are classes. The last
        node is the root.

    Raises:
        ValueError: fewer than 2 classes.
    """
    if rows.shape[0] < 2:
        raise ValueError(f"a tree needs 2 classes or more, not {rows.shape[0]}")
    from scipy.cluster.hierarchy import linkage  # imported here because the import is slow

    merges = linkage(rows.detach().double().cpu().numpy(), method="ward")
    return torch.from_numpy(merges[:, :2].astype("int64"))


class Hierarchy(nn.Module):
    """A binary tree over C classes; its nodes are numbered as in `induced_hierarchy`.

    Args:
        children: [C - 1, 2] long.

    Attributes:
        under: [C - 1, 2, C] 0 or 1: which classes lie below which child of which inner node.
        below: [2 C - 1, C] 0 or 1: which classes lie at or below each node.
    """

    children_: Tensor
    under: Tensor
    below: Tensor

    def __init__(self, children: Tensor) -> None:
        super().__init__()
        self.register_buffer("children_", children)
        for name, value in self._derived().items():
            self.register_buffer(name, value, persistent=False)

    @property
    def classes(self) -> int:
        """C."""
        return self.children_.shape[0] + 1

    @property
    def root(self) -> int:
        """The last node."""
        return 2 * self.classes - 2

    def _derived(self) -> dict[str, Tensor]:
        below = torch.eye(self.classes)
        for a, b in self.children_.tolist():  # children precede their parents
            below = torch.cat([below, (below[a] + below[b]).unsqueeze(0)])
        return {"below": below, "under": below[self.children_.cpu()]}

    def depths(self) -> Tensor:
        """The number of decisions on the path to each class: [C] long."""
        return self.below[self.classes :].sum(0).long()

    def node_logits(self, z: Tensor) -> Tensor:
        """For every inner node, the mean of the class logits below each child: z [n, C] -> [n, C - 1, 2]."""
        mean = self.under / self.under.sum(-1, keepdim=True)
        return torch.einsum("nc,jbc->njb", z, mean.to(z.dtype))

    def log_probabilities(self, z: Tensor) -> Tensor:
        """Soft inference: log p(c) = sum of log p(child) along c's path (eq. 2): z [n, C] -> [n, C]."""
        log_p = self.node_logits(z).log_softmax(-1)  # [n, C - 1, 2]
        return torch.einsum("njb,jbc->nc", log_p, self.under.to(z.dtype))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        for name, value in self._derived().items():
            old = getattr(self, name)
            setattr(self, name, value.to(old.device, old.dtype))


class NodeLogits(nn.Module):
    """The decision at a node: the mean of the class logits below each of its two children (eq. 1)."""

    def __init__(self, tree: Hierarchy) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, z: Tensor, node: Tensor) -> Tensor:
        """Logits z [n, C], nodes [n] -> [n, 2]; arbitrary where the node is a class."""
        under = self.tree.under.index_select(0, (node - self.tree.classes).clamp(min=0))  # [n, 2, C]
        return torch.bmm(under, z.unsqueeze(2)).squeeze(2) / under.sum(-1)


def _larger(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


class Step(nn.Module):
    """A step of hard inference: from a node to the child with the larger logit."""

    def __init__(self, tree: Hierarchy) -> None:
        super().__init__()
        self.tree = tree
        self.child = Choice("child", NodeLogits(tree), _larger)

    def forward(self, state: State, k: int) -> State:
        """(z [n, C], node [n]) -> (z, node); an input at a class stays there."""
        z, node = state
        choice = self.child(z, node)  # [n] 0 or 1
        pair = self.tree.children_.index_select(0, (node - self.tree.classes).clamp(min=0))  # [n, 2]
        return z, torch.where(node < self.tree.classes, node, pair.gather(1, choice.unsqueeze(1)).squeeze(1))


class ClassesBelow(nn.Module):
    """The answer at a node: equal probabilities for the classes below it; at a class, probability 1."""

    def __init__(self, tree: Hierarchy) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, state: State, k: int) -> Tensor:
        """(z [n, C], node [n]) -> [n, C]."""
        z, node = state
        below = self.tree.below.index_select(0, node).to(z.dtype)
        return below / below.sum(1, keepdim=True)


class AtClass(nn.Module):
    """The halting rule: an input stops at a class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, answer: Tensor, state: State, k: int) -> Tensor:
        """-> [n] bool."""
        return state[1] < self.classes


class Flat(nn.Module):
    """Without a tree: softmax of the classifier's logits."""

    def forward(self, state: State) -> Tensor:
        """(z [n, C], node) -> [n, C]."""
        return state[0].softmax(-1)


class NBDT(ResNet):
    """A ResNet and a tree over the rows of its classifier.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        inference: 'hard' or 'soft'.
        num_classes: C.
        dataset: 'cifar' or 'imagenet'.

    Attributes:
        tree: the hierarchy; that of the initial weights until weights are loaded or `grow` is called.
    """

    def __init__(
        self,
        block: BlockKind,
        layers: tuple[int, ...],
        inference: Literal["hard", "soft"],
        num_classes: int,
        dataset: str,
    ) -> None:
        super().__init__(block, layers, num_classes, dataset)
        self.inference = inference
        tree = Hierarchy(induced_hierarchy(self.fc.weight))
        self.tree = tree
        if inference == "hard":
            self.walk = Loop("walk", Step(tree), AtClass(num_classes), 1, ClassesBelow(tree), static=Flat())
        shared_once(self)
        self.register_load_state_dict_post_hook(_measure_tree)
        _measure_tree(self)

    def grow(self) -> None:
        """Rebuilds the tree from the classifier's current rows."""
        self.tree.load_state_dict({"children_": induced_hierarchy(self.fc.weight)})
        _measure_tree(self)

    def logits(self, x: Tensor) -> Tensor:
        """The network without its tree: x [n, 3, H, W] -> z [n, C]."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3, H, W] -> probabilities [n, C]; with hard inference 1 for one class."""
        z = self.logits(x)
        if self.inference == "soft":
            return self.tree.log_probabilities(z).exp()
        node = torch.full((z.shape[0],), self.tree.root, device=z.device)
        answer: Tensor = self.walk((z, node))
        return answer


def _measure_tree(net: nn.Module, *_: Any) -> None:
    """Sets the number of steps of hard inference to the length of the longest path in the tree."""
    net = cast(NBDT, net)
    if net.inference == "hard":
        net.walk.max_steps = int(net.tree.depths().max())


def tree_loss(
    z: Tensor, y: Tensor, tree: Hierarchy, kind: Literal["soft", "hard"] = "soft", *, as_code: bool = False
) -> Tensor:
    """L_tree, the tree supervision loss (section 3.3).

    soft: the cross-entropy of the classes' path probabilities. hard: the sum of the cross-entropies of all nodes on the
    path to an input's label, times 2 / (n (C - 1)).

    Args:
        z: logits [n, C].
        y: [n] labels.
        tree: over the classes.
        kind: 'soft' or 'hard'.
        as_code: the soft loss with the authors' second softmax.

    Returns:
        A scalar.
    """
    log_p = tree.log_probabilities(z)
    if kind == "soft":
        return F.cross_entropy(log_p.exp(), y) if as_code else F.nll_loss(log_p, y)
    node_losses = -tree.node_logits(z).log_softmax(-1)  # [n, C - 1, 2]
    towards = tree.under.to(z.dtype)[:, :, y].permute(2, 0, 1)  # [n, C - 1, 2], 1 at the child that leads to y
    return (node_losses * towards).sum() * 2 / (z.shape[0] * (tree.classes - 1))


def supervised_loss(
    z: Tensor,
    y: Tensor,
    tree: Hierarchy,
    kind: Literal["soft", "hard"] = "soft",
    *,
    beta: float = 1.0,
    omega: float = 1.0,
    as_code: bool = False,
) -> Tensor:
    """beta CE(z, y) + omega L_tree (eq. 3); `as_code`: with the authors' omega^2 in the hard loss too.

    Args:
        z: logits [n, C].
        y: [n] labels.
        tree: over the classes.
        kind: of L_tree.
        beta: weight of the classifier's own loss.
        omega: weight of the tree's: 1 for CIFAR, 10 for TinyImageNet and ImageNet.
        as_code: with the pitfalls of the authors' code.
    """
    weight = omega**2 if as_code and kind == "hard" else omega
    return beta * F.cross_entropy(z, y) + weight * tree_loss(z, y, tree, kind, as_code=as_code)


def nbdt(
    depth: int = 20, inference: Literal["hard", "soft"] = "hard", num_classes: int = 10, dataset: str = "cifar"
) -> NBDT:
    """A ResNet read as a decision tree.

    Args:
        depth: 6n+2 for 'cifar'; 18, 34, 50, 101 or 152 for 'imagenet'.
        inference: 'hard': from the root to the child with the larger logit, down to a class. 'soft': the class whose
            path has the largest product of probabilities; no decisions.
        num_classes: outputs, 2 or more.
        dataset: 'cifar' (inputs [n, 3, 32, 32], larger ones work) or 'imagenet' ([n, 3, 224, 224]).

    Raises:
        ValueError: there is no such network of this depth for this data set, unknown inference, or fewer than 2
            classes.
    """
    if inference not in ("hard", "soft"):
        raise ValueError(f"inference={inference!r}: inference in a decision tree is 'hard' or 'soft'")
    block, layers = architecture(depth, dataset)
    return NBDT(block, layers, inference, num_classes, dataset)


def accounted_macs(model: NBDT, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """The cost of an input, the same for every path."""
    rule = "backbone and whole classifier for every input, whatever its path; nodes' means not counted"
    return float(static_macs(model, shape)), rule
