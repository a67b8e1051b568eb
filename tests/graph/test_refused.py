"""Networks that cannot be a graph say why in one sentence, with the place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Loop, Pool
from dynbench.graph import CannotTrace, compiled
from dynbench.models.universal import universal_transformer


class Remembers(nn.Module):
    """A loop that writes each step's state into a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.loop = Loop("loop", self.step, lambda answer, state, k: answer[:, 0] > 0, 3, lambda state, k: state[0])

    def step(self, state: tuple[Tensor, Pool], k: int) -> tuple[Tensor, Pool]:
        x, pool = state
        pool.write(x, k)
        return self.layer(x) + pool.read(0), pool

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.loop((x, Pool.new(len(x), 3, 4, like=x)))
        return y


def remembers() -> tuple[nn.Module, Tensor]:
    return Remembers().eval(), torch.randn(3, 4)


def universal() -> tuple[nn.Module, Tensor]:
    model = universal_transformer(width=8, heads=2, ff_multiple=1, steps=3, context=4, vocab=6)
    return model.eval(), torch.randint(0, 6, (3, 4))


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize(
    ("make", "reason"),
    [(remembers, "a Pool is written in place"), (universal, "memory that positions share.*'ponder")],
)
def test_a_memory_that_is_written_in_place_is_refused(
    make: Callable[[], tuple[nn.Module, Tensor]], reason: str, single: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    with pytest.raises(CannotTrace, match=reason) as raised:
        compiled(*make(), single=single)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().out == ""
