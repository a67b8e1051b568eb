"""route_experts: a mixture of experts as a Route has the answers of the block it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.adapt import route_experts
from dynbench.dynamic import points
from dynbench.errors import UserError
from tests.adapt.networks import Mixture, Tokens
from tests.adapt.same_answer import TOLERANCE, assert_same_answer, assert_shares_weights, difference, run
from tests.networks import DYNAMIC

NAMES = ["blocks.0", "blocks.1"]
TOKENS = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("over", ["chosen", "all"])
@pytest.mark.parametrize("x", [TOKENS, TOKENS[:, 0]], ids=["tokens", "items"])
def test_routed_experts_answer_as_the_block_did(over: str, x: Tensor) -> None:
    torch.manual_seed(0)
    net = Tokens(over).eval()
    adapted = route_experts(net, NAMES, example=x)
    assert set(points(adapted)) == set(NAMES)
    with torch.inference_mode():
        for n in (1, len(x)):
            want = net(x[:n])
            for strategy in DYNAMIC:
                if strategy in ("masking", "compaction", "per_sample"):
                    assert difference(run(adapted, (x[:n],), strategy)[0], want) < TOLERANCE, strategy
    assert_same_answer(adapted, (x,))
    assert adapted.state_dict().keys() == net.state_dict().keys()
    assert_shares_weights(adapted, net)
    trace = run(adapted, (x,), "per_sample")[1]
    assert trace.entries["blocks.0", (3,) if x.dim() == 3 else ()].value.shape == (x.numel() // 8, 2)


def test_the_static_twin_is_every_expert() -> None:
    torch.manual_seed(0)
    net = Tokens("all").eval()
    adapted = route_experts(net, NAMES, example=TOKENS)
    for block in net.blocks:
        block.top_k = 4
    with torch.inference_mode():
        assert difference(adapted(TOKENS), net(TOKENS)) < TOLERANCE


def test_a_rule_of_ones_own_says_how_experts_are_added() -> None:
    class Equal(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(0, -2)
            chosen = self.gate(flat).topk(self.top_k, -1).indices
            each = torch.stack([expert(flat) for expert in self.experts], 1)
            return each.gather(1, chosen.unsqueeze(-1).expand(-1, -1, flat.shape[1])).sum(1).view_as(x)

    torch.manual_seed(0)
    net = nn.Sequential(Equal(8, 4, 2, "all")).eval()
    with pytest.raises(UserError, match="weigh= says how experts are added"):
        route_experts(net, ["0"], example=TOKENS)
    adapted = route_experts(
        net, ["0"], weigh=lambda scores, chosen: torch.ones_like(chosen, dtype=scores.dtype), example=TOKENS
    )
    with torch.inference_mode():
        assert difference(run(adapted, (TOKENS,), "compaction")[0], net(TOKENS)) < TOLERANCE


class Flat(nn.Module):
    """Tokens of all samples in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.moe = Mixture(8, 4, 2, "all")

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x.flatten(0, 1)).view_as(x)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a name": ({"names": ["blocks.9"]}, "no module 'blocks.9': did you mean blocks"),
    "no router": ({"router": "router"}, "'blocks.0' has no 'router'; its parts are gate, experts"),
    "no experts": ({"names": ["inner"]}, "'inner' has no 'gate'; its parts are none"),
    "other experts": ({"experts": "gate"}, "blocks.0.gate is Linear, not a ModuleList"),
    "k": ({"k": 9}, "k=9: how many of the 4 experts of 'blocks.0'"),
    "another k": ({"k": 1}, "'blocks.0' is more than the weighted sum of 1 experts"),
    "a shared expert": ({"model": Tokens("all", shared=True)}, "it has other parts, shared"),
    "flat tokens": ({"model": Flat(), "names": ["moe"]}, r"'moe' takes \[9, 8\] for 3 items"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_mixture_is_said_in_a_sentence(what: str) -> None:
    change, sentence = WRONG[what]
    arguments: dict[str, Any] = {"model": Tokens("all"), "names": NAMES, "example": TOKENS}
    with pytest.raises(UserError, match=sentence) as said:
        route_experts(**arguments | change)
    assert "\n" not in str(said.value)
