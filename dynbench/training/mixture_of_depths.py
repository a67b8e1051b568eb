"""The Mixture-of-Depths language model, and its dense twin trained for the same number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.models.mixture_of_depths import MoD, accounted_macs, mixture_of_depths
from dynbench.strategies import Compaction
from dynbench.training.evaluation import STORED, recorded, round_parameters
from dynbench.training.lm import BATCH, scores, train_dense
from dynbench.training.session import Session, Settings

TWIN = ("layers", "width", "heads", "context", "vocab")


@dataclass
class Predicting(Settings):
    """Settings of the networks.

    Attributes:
        predictor: weight of the predictors' loss, whose gradient reaches only the predictors.
    """

    predictor: float = 1.0


def train(session: Session) -> None:
    """The network `mod_{suffix}` and its dense twin `mod_twin_{suffix}`, trained in the same way.

    `[train.options.lm]` holds the settings of both.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    adamw: dict[str, Any] = {"optimizer": "adamw", "precision": "float32", "weight_decay": 0.1}
    settings = session.settings(Predicting, "lm", epochs=8, batch_size=32, lr=3e-3, warm_up=0.1, **adamw)
    twin_args = {"ff_multiple": args.get("ff_multiple", 4), **{k: v for k, v in args.items() if k in TWIN}}
    twin = f"mod_twin_{session.suffix}"
    train_dense(session, twin, twin_args, settings)
    name = f"mod_{session.suffix}"
    if not session.finished(name):
        torch.manual_seed(settings.seed)
        net = mixture_of_depths(**args)
        facts = session.fit(name, net, Both(settings.predictor), settings)
        facts |= evaluate(session, net) | {"dense_twin": twin}
        session.say(f"{name}: {facts['bits_per_byte']:.3f} bits per byte, {facts['decoding']}")
        card = session.card("dynbench.models.mixture_of_depths:mixture_of_depths", args=args, **facts)
        session.save(name, net, card, STORED)


class Both:
    """The next token's cross-entropy plus that of the predictors, whose targets are the picked tokens."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Tokens x and the next ones y [n, T] -> scalar."""
        assert isinstance(model, MoD)
        outputs, targets = model.training_form(x)
        loss = F.cross_entropy(outputs.float().flatten(0, 1), y.flatten())
        for guess, picked in targets:
            loss = loss + self.weight * F.binary_cross_entropy_with_logits(guess.float(), picked.to(torch.float32))
        return loss


@torch.inference_mode()
def evaluate(session: Session, net: MoD) -> dict[str, Any]:
    """For the card: scores with the top k of each sequence and with routing as in decoding, and their agreement."""
    round_parameters(net)
    x, y = session.tensors(session.inputs("test"))
    outputs, trace = recorded(net, x, Compaction(), BATCH)
    facts = scores(net, outputs, y)
    macs, rule = accounted_macs(net, trace, tuple(x.shape[1:]))
    loss, agree, through = 0.0, dict.fromkeys(net.routed, 0.0), dict.fromkeys(net.routed, 0.0)
    for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
        outputs, went = net.causal(part)
        loss += float(F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="sum"))
        for k, (guess, picked) in zip(net.routed, net.training_form(part)[1], strict=True):
            agree[k] += float(((guess > 0) == picked).double().sum())
            through[k] += float(went[k].double().sum())
    tokens = x.numel()
    blocks = {f"route{k}": round(agree[k] / tokens, 4) for k in net.routed}
    decoding = {
        "bits_per_byte": round(loss / tokens / torch.log(torch.tensor(2.0)).item(), 5),
        "share_through": {f"route{k}": round(through[k] / tokens, 4) for k in net.routed},
        "predictor_right": blocks,
        "always_no_would_be_right": round(1 - net.room(x.shape[1]) / x.shape[1], 4),
    }
    return facts | {"accounted_macs": round(macs), "computation_rule": rule, "decoding": decoding}
