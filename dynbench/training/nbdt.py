"""NBDT: from a trained ResNet, a tree over its classifier's rows, then fine-tuning with the tree supervision loss.

Wan et al., ICLR 2021, section 3. The tree is that of the trained network and stays fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from dynbench.models.nbdt import NBDT, Hierarchy, accounted_macs, nbdt, supervised_loss
from dynbench.strategies import Masking
from dynbench.training.evaluation import accuracy, logits, recorded
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import test_accuracy, train_resnet


@dataclass
class TreeSettings(Settings):
    """Settings of fine-tuning.

    Attributes:
        loss: 'soft' or 'hard'.
        beta: weight of the classifier's own loss.
        omega: weight of the tree's loss.
        as_code: with the pitfalls of the authors' code (see `dynbench.models.nbdt`).
    """

    loss: Literal["soft", "hard"] = "soft"
    beta: float = 1.0
    omega: float = 1.0
    as_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("loss", ("soft", "hard"))


class TreeSupervised:
    """beta CE + omega L_tree on the classifier's logits."""

    def __init__(self, settings: TreeSettings) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        assert isinstance(model, NBDT)
        s, z = self.settings, model.logits(x).float()
        return supervised_loss(z, y, model.tree, s.loss, beta=s.beta, omega=s.omega, as_code=s.as_code)


def train(session: Session) -> None:
    """ResNet of the workload's depth, `resnet{depth}_{suffix}`, and the NBDT, named as the workload.

    `[train.options.resnet]` and `[train.options.tree]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depth, name = args.get("depth", 20), str(session.workload["name"])
    static = train_resnet(session, depth)
    if session.finished(name):
        return
    settings = session.settings(TreeSettings, "tree", epochs=3, lr=0.01)
    net = nbdt(**args)
    net.load_state_dict({**net.state_dict(), **static.state_dict()})
    net.grow()
    before = {"accuracy_before_fine_tuning": evaluate(session, net.to(session.device).eval())["accuracy"]}
    facts = session.fit(name, net, TreeSupervised(settings), settings)
    facts |= before | evaluate(session, net)
    facts["static_twin"] = {"name": f"resnet{depth}_{session.suffix}", "accuracy": test_accuracy(session, static)}
    facts["tree"] = nested(net.tree)
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f}, without the tree {facts['accuracy_without_tree']:.4f}")
    session.save(name, net, session.card("dynbench.models.nbdt:nbdt", args=args, **facts))


def evaluate(session: Session, net: NBDT) -> dict[str, Any]:
    """For the card: accuracy with each kind of inference, the length of paths, the cost of an input."""
    x, y = session.tensors(session.inputs("test"))
    outputs, trace = recorded(net, x, Masking())
    z = logits(net.logits, x)
    macs, rule = accounted_macs(net, trace, tuple(x.shape[1:]))
    lengths = net.tree.depths()[outputs.argmax(-1)].double()
    return {
        "accuracy": accuracy(outputs, y),
        "accuracy_soft": accuracy(net.tree.log_probabilities(z), y),
        "accuracy_without_tree": accuracy(z, y),
        "path_length": {"mean": round(float(lengths.mean()), 3), "longest": int(net.tree.depths().max())},
        "macs": round(macs),
        "macs_rule": rule,
        "computation": 1.0,
    }


def nested(tree: Hierarchy) -> list[Any]:
    """The tree as pairs of pairs of classes."""
    made: list[Any] = list(range(tree.classes))
    for a, b in tree.children_.tolist():
        made.append([made[a], made[b]])
    root: list[Any] = made[-1]
    return root
