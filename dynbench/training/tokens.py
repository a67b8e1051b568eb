"""The vision transformer whose tokens are pruned or merged, and the fine-tuning of DynamicViT.

Rao et al., "DynamicViT", NeurIPS 2021, section 3.3: masks sampled by Gumbel-softmax, network and predictors fine-tuned
together, with the initial network as teacher. Merging (ToMe) needs no training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Execution
from dynbench.models.dynvit import DynamicViT, accounted_macs, dynvit
from dynbench.models.tome import ToMe
from dynbench.models.vit import ViT, vit
from dynbench.strategies import Compaction
from dynbench.training.evaluation import accuracy, logits, recorded
from dynbench.training.session import Session, Settings, cross_entropy

ADAMW: dict[str, Any] = {"optimizer": "adamw", "precision": "float32", "weight_decay": 0.05}


@dataclass
class Pruned(Settings):
    """Settings of DynamicViT's fine-tuning; the losses' weights are those of the authors' code.

    Attributes:
        ratio_weight: of the squared distance of the share of kept tokens from its target.
        distill_weight: of both distances to the teacher, that of the answers and that of the tokens.
    """

    ratio_weight: float = 2.0
    distill_weight: float = 0.5


def train_vit(session: Session) -> None:
    """The network without pruning or merging, `vit_{suffix}`, and one with fewer blocks, `vit_small_{suffix}`.

    `[train.options.vit]` holds the settings of both.
    """
    backbone(session, "vit", own_arguments(session))
    small(session)


def train_dynvit(session: Session) -> None:
    """The same, then DynamicViT, `dynvit_{suffix}`, which starts from the first of them.

    `[train.options.dynvit]` holds its settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    teacher = backbone(session, "vit", own_arguments(session))
    small(session)
    name = f"dynvit_{session.suffix}"
    if session.finished(name):
        return
    settings = session.settings(Pruned, "dynvit", epochs=1, batch_size=64, lr=5e-4, warm_up=0.1, **ADAMW)
    torch.manual_seed(settings.seed)
    net = dynvit(**args).to(session.device)
    net.vit.load_state_dict(teacher.state_dict())
    facts = session.fit(name, net, Finetune(teacher, settings), settings)
    facts |= evaluate(session, net)
    facts["static_twin"] = {"name": f"vit_{session.suffix}", "accuracy": scored(session, teacher)}
    facts["pruned_without_fine_tuning"] = {"accuracy": untrained(session, args, teacher, net)}
    session.say(f"{name}: accuracy {facts['accuracy']}, not pruned {facts['static_twin']['accuracy']}")
    session.save(name, net, session.card("dynbench.models.dynvit:dynvit", args=args, **facts))


def own_arguments(session: Session) -> dict[str, Any]:
    """The workload's arguments for the network itself."""
    args: dict[str, Any] = session.workload.get("model_args", {})
    return {k: v for k, v in args.items() if k not in ("ratio", "places", "r", "inflect")}


def backbone(session: Session, name: str, args: dict[str, Any]) -> ViT:
    """A network without pruning or merging, `{name}_{suffix}`, by cross-entropy; loaded if it is finished."""
    name = f"{name}_{session.suffix}"
    settings = session.settings(Settings, "vit", epochs=7, batch_size=64, lr=3e-3, warm_up=0.1, **ADAMW)
    torch.manual_seed(settings.seed)
    net = vit(**args)
    if session.finished(name):
        session.load(net, name)
        return net.to(session.device).eval()
    scale_weights(net)
    facts = session.fit(name, net, cross_entropy, settings)
    facts |= {"accuracy": scored(session, net), "accuracy_when_merged": merged(session, net)}
    session.say(f"{name}: accuracy {facts['accuracy']}; merged without training: {facts['accuracy_when_merged']}")
    session.save(name, net, session.card("dynbench.models.vit:vit", args=args, **facts))
    return net


def scale_weights(net: ViT) -> None:
    """Initial weights that preserve the scale of activations: with DeiT's small ones a narrow network hardly learns."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    nn.init.trunc_normal_(net.position, std=0.3)


def small(session: Session) -> ViT:
    """A static network with fewer operations, `vit_small_{suffix}`: three quarters of the blocks."""
    args = own_arguments(session)
    depth = vit(**args).size.depth
    return backbone(session, "vit_small", {**args, "depth": max(3 * depth // 4, 1)})


def scored(session: Session, run: Callable[[Tensor], Tensor]) -> float:
    """Share of right answers on the test part."""
    x, y = session.tensors(session.inputs("test"))
    return accuracy(logits(run, x), y)


def merged(session: Session, net: ViT) -> dict[str, float]:
    """Accuracy if every block merges r pairs, for several r, without training for it."""
    found = {}
    for r in (1, 2, 4, 8, 12):
        model = ToMe(net, [r] * len(net.blocks)).eval()
        found[f"r={r}"] = scored(session, lambda part, model=model: Execution(Compaction()).run(model, part))  # type: ignore[misc]
    return found


class Finetune:
    """Cross-entropy, the share of kept tokens, and two distances to the teacher (eq. 12 to 16, as in the code)."""

    def __init__(self, teacher: ViT, settings: Pruned) -> None:
        self.teacher, self.settings = teacher.eval(), settings

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Images x [n, C, H, W], labels [n] -> scalar."""
        assert isinstance(model, DynamicViT)
        outputs, tokens, left, decided = model.masked(x)
        with torch.no_grad():
            t = self.teacher.tokens(x)
            for block in self.teacher.blocks:
                t = block(t)
            t = self.teacher.norm(t)
            wanted = self.teacher.head(t[:, 0])
        loss = F.cross_entropy(outputs.float(), y)
        shares = [((d.mean(1) - n / d.shape[1]) ** 2).mean() for d, n in zip(decided, model.left, strict=True)]
        loss = loss + self.settings.ratio_weight * sum(shares) / len(shares)
        answer = F.kl_div(outputs.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)
        apart = ((tokens - t[:, 1:]) ** 2).mean(-1)  # [n, N]
        token = (apart * left.detach()).sum() / left.detach().sum().clamp(min=1)
        return loss + self.settings.distill_weight * (answer + token)


def evaluate(session: Session, net: DynamicViT) -> dict[str, Any]:
    """For the card: accuracy, and MACs as the paper counts them."""
    x, y = session.tensors(session.inputs("test"))
    outputs, trace = recorded(net, x, Compaction())
    macs, rule = accounted_macs(net, trace, tuple(x.shape[1:]))
    return {
        "accuracy": accuracy(outputs, y),
        "tokens_left": net.left,
        "accounted_macs": round(macs),
        "computation_rule": rule,
    }


def untrained(session: Session, args: dict[str, Any], teacher: ViT, trained: DynamicViT) -> float:
    """Accuracy of the network before fine-tuning with the predictors after it, to show the effect of fine-tuning."""
    net = dynvit(**args).to(session.device).eval()
    net.load_state_dict(trained.state_dict())
    net.vit.load_state_dict(teacher.state_dict())
    return scored(session, lambda part: Execution(Compaction()).run(net, part))
