"""TAFE-Net on pairs of attribute and object, some of which are not in the training images.

First a feature extractor is trained on images of other colours, as the paper's is trained on other images (ImageNet);
then it is frozen. TAFE-Net, and two plain classifiers for comparison, are trained on its features of seen pairs. As in
the authors' code an image is compared with the pairs in its mini-batch; the meta-learner runs once for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.data.attribute_objects import ATTRIBUTES, OBJECTS, pairs_of
from dynbench.dynamic import Execution
from dynbench.errors import UserError
from dynbench.models.accounting import static_macs
from dynbench.models.tafenet import Classifier, TAFENet, tafenet, tafenet_classifier, tafenet_loss
from dynbench.strategies import Compaction
from dynbench.training.evaluation import accuracy, logits
from dynbench.training.session import Session, Settings, cross_entropy


@dataclass
class TaskSettings(Settings):
    """Settings of TAFE-Net.

    Attributes:
        beta: weight of the embedding loss.
    """

    batch_size: int = 64
    lr: float = 1e-3
    warm_up: float = 0.1
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    beta: float = 0.1


class PairsPresent:
    """The loss over all pairs of an image and a task of its mini-batch.

    Args:
        beta: weight of the embedding loss.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], tasks y [n] -> scalar."""
        assert isinstance(model, TAFENet)
        present = y.unique()  # [T]
        z = model.linear_0(x if model.cnn is None else model.cnn(x))
        scales, embedding = model.meta_learner(model.tasks(present))
        each = tuple(s.repeat(len(y), 1) for s in (*scales, embedding))  # [n T, width]
        outputs, similarity = model.taught(z.repeat_interleave(len(present), 0), each[:-1], each[-1])
        right = (y.unsqueeze(1) == present).float()
        shape = right.shape
        return tafenet_loss(outputs.float().view(shape), similarity.float().view(shape), right, self.beta)


def train(session: Session) -> None:
    """The workload's TAFE-Net, its baselines `{name}_factors` and `{name}_pairs`, and `{name}_features` for all three.

    `[train.options.features]`, `[train.options.plain]` and `[train.options.tasks]` hold the stages' settings.

    Raises:
        UserError: other inputs, or a network without a feature extractor or with other tasks.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    if session.workload["inputs"]["name"] != "attribute_objects" or not args.get("cnn"):
        raise UserError("training: TAFE-Net learns from inputs 'attribute_objects', with a `cnn` in [model_args]")
    if list(args.get("tasks", [])) != [len(ATTRIBUTES), len(OBJECTS)]:
        raise UserError(f"training: tasks = {args.get('tasks')}; accepted: [{len(ATTRIBUTES)}, {len(OBJECTS)}]")
    name, cnn = str(session.workload["name"]), args["cnn"]
    other = {
        **session.workload["inputs"],
        "options": {**session.workload["inputs"].get("options", {}), "palette": "other"},
    }
    elsewhere = replace(session, workload={**session.workload, "inputs": other})
    settings = session.settings(Settings, "features", epochs=6, items=10000, lr=0.05)
    extractor = _classifier(elsewhere, f"{name}_features", cnn, settings).cnn
    plain = session.settings(Settings, "plain", epochs=2, items=10000, lr=0.05)
    for factors in (True, False):
        _classifier(session, f"{name}_{'factors' if factors else 'pairs'}", cnn, plain, factors, extractor)
    if session.finished(name):
        return
    tasks = session.settings(TaskSettings, "tasks", epochs=10, items=10000)
    torch.manual_seed(tasks.seed)
    net = tafenet(**args)
    assert net.cnn is not None
    net.cnn.load_state_dict(extractor.state_dict())
    facts = session.fit(name, net, PairsPresent(tasks.beta), tasks)
    facts |= evaluate(session, lambda x: Execution(Compaction()).run(net, x))
    facts["static_twin"] = {"name": "every pair by itself, as published", **evaluate(session, net)}
    shape = tuple(session.tensors(session.inputs("test", limit=1))[0].shape[1:])
    facts["macs"] = {"as_published": static_macs(net, shape), "features": static_macs(net.cnn, shape)}
    session.say(f"{name}: accuracy {facts['accuracy']:.4f}, {facts['accuracy_of']}")
    session.save(name, net, session.card("dynbench.models.tafenet:tafenet", args=args, **facts), torch.float16)


def _classifier(
    session: Session,
    name: str,
    channels: list[int],
    settings: Settings,
    factors: bool = True,
    extractor: nn.Module | None = None,
) -> Classifier:
    """A plain classifier of attributes and objects, or of pairs; on the features of an extractor, or with its own."""
    args: dict[str, Any] = {"pairs": [len(ATTRIBUTES), len(OBJECTS)], "cnn": channels, "factors": factors}
    torch.manual_seed(settings.seed)
    net = tafenet_classifier(**args)
    if session.finished(name):
        session.load(net, name)
        return net.to(session.device).eval()
    if extractor is not None:
        net.cnn.load_state_dict(extractor.state_dict())
        net.cnn.requires_grad_(False)
    facts = session.fit(name, net, plain_loss, settings)
    facts |= evaluate(session, net)
    session.say(f"{name}: accuracy {facts['accuracy']:.4f}, {facts['accuracy_of']}")
    session.save(name, net, session.card("dynbench.models.tafenet:tafenet_classifier", args=args, **facts))
    return net


def plain_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of pairs, or of attribute and object separately; x [n, 3, H, W], pairs y [n]."""
    assert isinstance(model, Classifier)
    if not any(p.requires_grad for p in model.cnn.parameters()):
        model.cnn.eval()  # frozen, including batch norm statistics
    if not model.factors:
        return cross_entropy(model, x, y)
    attribute, obj = model.apart(x)
    return F.cross_entropy(attribute.float(), y // len(OBJECTS)) + F.cross_entropy(obj.float(), y % len(OBJECTS))


def evaluate(session: Session, run: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """For the card: accuracy on the test part, on pairs seen and unseen in training.

    Returns:
        `accuracy`, on the workload's test part, among all pairs. `accuracy_of`: the same for images of `seen` and of
        `unseen` pairs, and their harmonic mean (generalised zero-shot learning); `unseen_among_unseen`, with only
        unseen pairs as answers (zero-shot learning); and chance levels.
    """
    x, y = session.tensors(session.inputs("test"))
    outputs, pairs = logits(run, x), len(pairs_of("all"))
    unseen = torch.from_numpy(pairs_of("unseen")).to(y.device)
    new = torch.isin(y, unseen)
    seen, generalised = accuracy(outputs[~new], y[~new]), accuracy(outputs[new], y[new])
    among = unseen[outputs[new][:, unseen].argmax(1)]
    return {
        "accuracy": accuracy(outputs, y),
        "accuracy_of": {
            "seen": seen,
            "unseen": generalised,
            "harmonic_mean": round(2 * seen * generalised / max(seen + generalised, 1e-9), 5),
            "unseen_among_unseen": round((among == y[new]).double().mean().item(), 5),
            "chance": round(1 / pairs, 5),
            "chance_among_unseen": round(1 / len(unseen), 5),
        },
    }
