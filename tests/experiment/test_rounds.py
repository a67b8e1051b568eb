"""Rounds of a group: which arms take part, and with what they begin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dynbench import devices
from dynbench.experiment import Options
from dynbench.experiment import rounds as rounds_module
from dynbench.experiment.rounds import Rounds
from dynbench.meters.loads import ClosedLoop


class Arm:
    """An arm that notes its calls, and fails in one of them."""

    def __init__(self, key: str, pass_s: float, *, deployed: bool = False, fails_at: int | None = None) -> None:
        self.arm = SimpleNamespace(key=key, only_explains=False)
        self.cell = SimpleNamespace(deployed=deployed)
        self.pass_s, self.written, self.fails_at = pass_s, True, fails_at
        self.batches = [(2 * i, torch.zeros(2)) for i in range(3)]
        self.device, self.rounds, self.calls = devices.device("cpu"), list[Any](), list[int]()
        self.failed: str | None = None
        self.stopped_by = ""

    def call(self, start: int, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(start)
        if len(self.calls) == self.fails_at:
            raise RuntimeError("no luck")
        return x


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`rounds(arms, n)`: n rounds of all arms, or until the time is over."""
    monkeypatch.setattr(rounds_module, "ratios", lambda arms: [])
    monkeypatch.setattr(rounds_module, "is_control", lambda control, arm: False)

    def play(arms: list[Arm], n: int | None = None, limit_s: float = 60.0) -> None:
        p: Any = SimpleNamespace(options=Options(time_limit_s=limit_s), parts=SimpleNamespace(load=ClosedLoop()))
        nothing: Any = SimpleNamespace(tick=lambda: None, add=lambda *_: None)
        source: Any = SimpleNamespace(sweep=False)

        def stop() -> bool:
            return n is not None and max(len(a.rounds) for a in arms) >= n

        Rounds(p, source, nothing, lambda *_, **__: None, stop, nothing, None).measure(arms)  # type: ignore[arg-type]

    return play


def test_short_passes_begin_with_a_batch_that_is_not_timed(rounds: Any) -> None:
    for pass_s, expected in ((0.01, [0, 0, 2, 4] * 2), (1.0, [0, 2, 4] * 2)):
        arms = [Arm("slow", 1.0), Arm("fast", pass_s)]
        rounds(arms, 2)
        assert all(arm.calls == expected for arm in arms)
        assert all(len(timings) == 3 for arm in arms for timings in arm.rounds)


def test_an_arm_that_fails_before_it_is_timed_has_no_round(rounds: Any) -> None:
    good, bad = Arm("good", 0.0), Arm("bad", 0.0, fails_at=5)
    rounds([good, bad], 3)
    assert bad.failed == "no luck" and len(bad.rounds) == 1 and len(bad.calls) == 5
    assert len(good.rounds) == 3


def test_where_time_is_over_deployed_arms_go_on_alone(rounds: Any) -> None:
    slow, deployed = Arm("slow", 0.0), Arm("deployed", 0.0, deployed=True)
    rounds([slow, deployed], limit_s=1e-6)
    assert len(slow.rounds) == rounds_module.MIN_ROUNDS and len(deployed.rounds) == rounds_module.MIN_ROUNDS + 1
    assert slow.stopped_by == deployed.stopped_by == "time limit"
    alone = [Arm("a", 0.0, deployed=True), Arm("b", 0.0, deployed=True)]
    rounds(alone, limit_s=1e-6)
    assert [len(a.rounds) for a in alone] == [rounds_module.MIN_ROUNDS] * 2
    interrupted = [Arm("slow", 0.0), Arm("deployed", 0.0, deployed=True)]
    rounds(interrupted, 1)
    assert [len(a.rounds) for a in interrupted] == [1, 1] and interrupted[1].stopped_by == "interrupt"
