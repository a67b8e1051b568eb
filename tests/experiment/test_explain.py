"""Waterfalls of a group in time and in joules, from made-up arms and a made-up counter."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from dynbench.devices.fake import FakeDevice
from dynbench.experiment.explain import explained, explained_energy
from dynbench.meters.energy import PARTS, measure_energy
from dynbench.store.schema import Arm, Cell, Energy, Waterfall
from dynbench.unavailable import Measured, Unavailable
from tests.report import made_up

DENSE, REQUIRED = 100.0, 50.0
ROUNDS = 20


@dataclass
class Ran:
    """An arm whose every round takes as long."""

    cell: Cell
    ms: float
    failed: str | None = None

    @property
    def arm(self) -> Arm:
        return self.cell.arm

    def totals_ns(self) -> np.ndarray:
        return np.full(ROUNDS, round(self.ms * 1e6), dtype=np.int64)


@dataclass
class Did:
    executed: Measured
    required_region: Measured = REQUIRED
    required_total: Measured = REQUIRED
    columns: dict[str, Any] = field(default_factory=dict)


def metered(joules: float, *, counter: bool = True) -> Energy:
    """By the meter itself, from a counter of a device that uses so many joules in a pass of 100 ms of one item."""
    device = FakeDevice(idle_w=0.0 if counter else None)
    return measure_energy(lambda: device.work(100_000_000, extra_w=joules * 10), device, items=1, idle_w=0.0)


Group = tuple[list[Ran], dict[str, Did]]


def group(*, counter: bool = True) -> Group:
    """100 ms dense; compaction 80 ms, 75 without waiting, 66 without deciding, 60 without moving.

    Power differs: moving costs more joules than time, waiting fewer.
    """
    strategy = made_up.cell("compaction", 8, 1.25)
    primary = made_up.cell("ResNet-38", 8, None, kind="baseline", primary=True)
    arms, work = [], {}

    def add(cell: Cell, ms: float, joules: float, flops: float) -> None:
        ran = Ran(cell, ms)
        arms.append(ran)
        work[ran.arm.key] = Did(flops, columns={"energy": metered(joules, counter=counter)})

    add(primary, 100, 10.0, DENSE)
    add(strategy, 80, 9.0, 55.0)
    for part, ms, joules, flops in (
        ("everything", 60, 5.5, REQUIRED),
        ("deciding", 66, 7.7, REQUIRED),
        ("waiting", 75, 8.8, 55.0),
    ):
        arm = strategy.arm.model_copy(update={"kind": "control", "without": part})
        add(strategy.model_copy(update={"arm": arm, "cell_id": part}), ms, joules, flops)
    return arms, work


def found(what: Literal["time", "energy"], made: Group) -> Waterfall | None:
    arms, work = made
    if what == "time":
        return explained(arms[1], arms[0], arms, work, 0.01)[0]
    return explained_energy(arms[1], arms[0], arms, work)


def values(given: Waterfall | None) -> dict[str, float]:
    assert given is not None
    return {f.name: f.value for f in given.factors}


def test_time_and_joules_are_explained_by_the_same_controls() -> None:
    made = group()
    in_time, in_joules = found("time", made), found("energy", made)
    wanted = {"surplus": 1, "fewer_items": 1.2, "moving": 1.1, "deciding": 75 / 66, "waiting": 80 / 75, "rest": 1}
    assert values(in_time) == pytest.approx(wanted)
    wanted = {"surplus": 1, "fewer_items": 1.1, "moving": 1.4, "deciding": 8.8 / 7.7, "waiting": 9 / 8.8, "rest": 1}
    assert values(in_joules) == pytest.approx(wanted)


def test_the_product_of_the_factors_of_energy_is_exact() -> None:
    whole = found("energy", group())
    assert whole is not None and whole.speedup == pytest.approx(10 / 9)
    assert math.prod(f.value for f in whole.factors) == pytest.approx(whole.ideal / whole.speedup)
    assert all("energy per FLOP" in f.how for f in whole.factors if f.name == "fewer_items")


def test_noise_of_the_counter_is_in_the_intervals() -> None:
    arms, work = group()
    noise = np.random.default_rng(0)
    for did in work.values():
        energy = did.columns["energy"]
        parts = [p * float(noise.lognormal(0, 0.1)) for p in energy.parts_j]
        did.columns["energy"] = energy.model_copy(update={"parts_j": parts})
    whole = explained_energy(arms[1], arms[0], arms, work)
    assert whole is not None
    assert all(f.low < f.value < f.high for f in whole.factors if f.name not in ("surplus", "rest"))


def test_without_a_counter_there_is_none() -> None:
    made = group(counter=False)
    assert isinstance(made[1]["compaction"].columns["energy"].item_j, Unavailable)
    assert found("time", made) is not None and found("energy", made) is None


def test_without_the_joules_of_the_arm_the_baseline_or_any_control_there_is_none() -> None:
    for missing in (["compaction"], ["ResNet-38"], ["everything", "deciding", "waiting"]):
        arms, work = group()
        for ran in arms:
            if ran.arm.without in missing or (ran.arm.without is None and ran.arm.name in missing):
                work[ran.arm.key].columns["energy"] = metered(1.0, counter=False)
        assert explained_energy(arms[1], arms[0], arms, work) is None


def test_an_arm_with_fewer_parts_shortens_those_of_its_waterfall_and_one_is_too_few() -> None:
    arms, work = group()
    energy = work[arms[1].arm.key].columns["energy"]
    assert len(energy.parts_j) == PARTS
    for kept, there in ((3, True), (1, False)):
        work[arms[1].arm.key].columns["energy"] = energy.model_copy(update={"parts_j": energy.parts_j[:kept]})
        assert (explained_energy(arms[1], arms[0], arms, work) is not None) == there
