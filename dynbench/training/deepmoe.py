"""DeepMoE: from a ResNet, base and gates together, then the base alone with fixed gates.

Wang et al., UAI 2019: J = L + lambda sum_l |g_l|_1 + mu L_emb, then gates and embedding frozen and the base fine-tuned.
Differences from the authors' training, which takes many times as long: it starts from a trained ResNet, from an
embedding network trained on L_emb alone, and from different gates around 1. The weights W_g have a higher learning
rate. And lambda is larger, its gradient does not reach the embedding network, which would forget its classes, and it
falls to 0 as the share of open channels approaches a target: the authors' lambda closes no gates in a few epochs, and
a larger one closes all of them, as batch norm compensates for uniformly small gates before it, and a gate that is
closed for all inputs never opens again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.accounting import static_macs
from dynbench.models.deepmoe import DeepMoEResNet, DeepMoEVGG, accounted_macs, deepmoe
from dynbench.strategies import Masking
from dynbench.training.blocks import ALWAYS, NEVER
from dynbench.training.evaluation import accuracy, logits, recorded, with_decisions
from dynbench.training.session import Session, Settings
from dynbench.training.supervised import test_accuracy, train_resnet

Net = DeepMoEResNet | DeepMoEVGG


@dataclass
class Joint(Settings):
    """The first stage.

    Attributes:
        sparsity: lambda, of the sum over convolutions of |g_l|_1 (the authors, according to others: 0.001).
        target: share of open channels at which lambda reaches 0.
        embedding_weight: mu, of the cross-entropy of the embedding network (the authors, according to others: 1).
        spread: initial deviation of the gates from 1, for each channel.
        class_spread: initial deviation, for each channel and class.
        gate_speed: learning rate of the weights W_g relative to that of all others.
    """

    sparsity: float = 0.01
    target: float = 0.5
    embedding_weight: float = 1.0
    spread: float = 0.75
    class_spread: float = 0.4
    gate_speed: float = 20.0


def train(session: Session) -> None:
    """ResNet and DeepMoE of the workload's depth, `resnet{depth}_{suffix}` and the workload's name.

    `[train.options.resnet]`, `[train.options.embedding]`, `[train.options.joint]` and `[train.options.frozen]` hold the
    stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depth, name = args.get("depth", 56), str(session.workload["name"])
    static = train_resnet(session, depth)
    if session.finished(name):
        return
    first = session.settings(Settings, "embedding", epochs=5, lr=0.1)
    second = session.settings(Joint, "joint", epochs=5, lr=0.05)
    third = session.settings(Settings, "frozen", epochs=3, lr=0.05)
    torch.manual_seed(second.seed)
    net = deepmoe(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    for gate in gates(net):
        spread_gates(gate.weight, second)
    stages = {"embedding": session.fit(f"{name}_embedding", net, embedding_loss, first)}
    hooks = [gate.weight.register_hook(lambda slope: second.gate_speed * slope) for gate in gates(net)]
    stages["joint"] = session.fit(f"{name}_joint", net, Sparse(second), second)
    for hook in hooks:
        hook.remove()
    for p in chosen_by(net):
        p.requires_grad = False
    stages["frozen"] = session.fit(f"{name}_frozen", net, frozen_loss, third)
    facts = evaluate(session, net)
    facts["static_twin"] = {"name": f"resnet{depth}_{session.suffix}", "accuracy": test_accuracy(session, static)}
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the computation")
    session.save(name, net, session.card("dynbench.models.deepmoe:deepmoe", args=args, **facts, stages=stages))
    for stage in stages:
        session.forget(f"{name}_{stage}")


def spread_gates(weight: Tensor, settings: Joint) -> None:
    """Initial W_g [C, K] around 1: some channels count less for all classes, some for a few."""
    channels, each = (torch.rand(n) * 2 - 1 for n in ((len(weight), 1), weight.shape))
    with torch.no_grad():
        weight.copy_(1 + settings.spread * channels + settings.class_spread * each)


def gates(net: Net) -> list[nn.Linear]:
    """The W_g of each mixture."""
    return [cast(nn.Linear, mixture.choose) for mixture in net.mixtures]


def chosen_by(net: Net) -> list[nn.Parameter]:
    """The parameters that determine decisions, those of gates and embedding network."""
    return [p for part in (net.embedding, *gates(net)) for p in part.parameters()]


def embedding_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """L_emb: x [n, 3, H, W], y [n] -> scalar."""
    assert isinstance(model, Net)
    return F.cross_entropy(model.embedding(x).float(), y)


def frozen_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """L with the embedding network in evaluation mode: x [n, 3, H, W], y [n] -> scalar."""
    assert isinstance(model, Net)
    model.embedding.eval()  # its batch norms affect decisions, too
    return F.cross_entropy(Execution(Masking()).run(model, x).float(), y)


class Sparse:
    """L + lambda sum_l |g_l|_1 + mu L_emb; lambda decreases as the share of open channels approaches its target.

    Gates learn through the values by which channels are multiplied; a closed one has no gradient.
    """

    def __init__(self, settings: Joint) -> None:
        self.settings = settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x [n, 3, H, W], y [n] -> scalar."""
        assert isinstance(model, Net)
        embedded: list[Tensor] = []  # logits of the embedding network
        hook = model.embedding.register_forward_hook(lambda _, args, logits: embedded.append(logits.float()))
        try:
            answer = Execution(Masking()).run(model, x)
        finally:
            hook.remove()
        e = embedded[0].detach().softmax(1)  # [n, K]
        g = torch.cat([F.relu(gate(e).float()) for gate in gates(model)], 1)  # [n, channels]
        s = self.settings
        above = ((g > 0).float().mean() - s.target).clamp(min=0) / (1 - s.target)
        sparse = s.sparsity * above * g.sum(1).mean()
        return F.cross_entropy(answer.float(), y) + sparse + s.embedding_weight * F.cross_entropy(embedded[0], y)


def evaluate(session: Session, net: Net) -> dict[str, Any]:
    """For the card, on the test part.

    Returns:
        Accuracy, and that of the embedding network alone; computation as the paper counts it, relative to the static
        twin; the share of open channels, and those closed for all inputs; how decisions vary between inputs; and the
        accuracy if each input has the open channels of another one, weighted by its own gates, which is lower as far as
        decisions fit the input.
    """
    x, y = session.tensors(session.inputs("test"))
    outputs, trace = recorded(net, x, Masking())
    shape = tuple(x.shape[1:])
    macs, rule = accounted_macs(net, trace, shape)
    masks = {mixture.name: trace.entries[mixture.name, ()].value for mixture in net.mixtures}  # [n, channels] each
    of_another = {name: value.roll(-7, 0) for name, value in masks.items()}
    table = torch.cat(list(masks.values()), 1)  # [n, channels]
    rates, opened = table.double().mean(0), table.sum(1).double()
    return {
        "accuracy": accuracy(outputs, y),
        "accuracy_of_the_embedding_network": accuracy(logits(net.embedding, x), y),
        "computation": round(macs / static_macs(net, shape), 5),
        "computation_rule": rule,
        "keep_rates": {name: round(mask.double().mean().item(), 4) for name, mask in masks.items()},
        "channels": table.shape[1],
        "channels_closed": round(1 - rates.mean().item(), 5),
        "channels_closed_for_everybody": int((rates == 0).sum()),
        "gates_that_depend_on_the_input": int(((rates > NEVER) & (rates < ALWAYS)).sum()),
        "accuracy_with_the_decisions_of_another_input": accuracy(with_decisions(net, x, Masking(), of_another), y),
        "distinct_masks": len(table.unique(dim=0)),
        "distinct_masks_of_a_mixture": {name: len(mask.unique(dim=0)) for name, mask in masks.items()},
        "channels_open": {"mean": round(opened.mean().item(), 1), "std": round(opened.std().item(), 1)},
    }
