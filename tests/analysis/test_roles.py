"""Workloads whose result is known beforehand: when a run found it, when not, and when nothing can be said."""

from __future__ import annotations

from typing import Any

import pytest

from dynbench.analysis.overview import summarise
from dynbench.analysis.roles import Judgement, judged_role
from dynbench.experiment.spec import load_spec
from dynbench.paths import workload_files
from dynbench.store.schema import Cell, Factor, Flops, Role, Speedup, Waterfall
from dynbench.unavailable import Unavailable
from tests.report import made_up

DENSE = made_up.DENSE
UNKNOWN = Unavailable(unavailable="an operator has no formula")


def flops(executed: Any = DENSE, required: Any = DENSE) -> Flops:
    return Flops(dense=DENSE, required_region=required, required_total=required, executed=executed, accounted=DENSE)


def ran(speed: float, *, batch: int = 32, width: float = 0.03, resolution: float | None = 0.02, **changes: Any) -> Cell:
    """One compaction cell beside its baseline."""
    found = Speedup(
        value=speed,
        low=speed / (1 + width),
        high=speed * (1 + width),
        baseline="ResNet-38",
        primary=True,
        resolution=resolution,
    )
    return made_up.cell("compaction", batch, speed, speedups=[found], **changes)


def judged(role: Role | None, *cells: Cell) -> Judgement | None:
    (summary,) = summarise([made_up.info(role=role)], list(cells))
    return judged_role(summary)


def verdict(role: Role, *cells: Cell) -> str:
    found = judged(role, *cells)
    assert found is not None and found.role == role and found.why
    return found.verdict


def test_a_workload_without_a_role_is_not_judged() -> None:
    assert judged(None, ran(1.5)) is None


def test_a_positive_control_executes_less_and_is_faster() -> None:
    cell = ran(1.5, flops=flops(0.6 * DENSE, 0.6 * DENSE), ideal=1 / 0.6)
    assert verdict("positive control", cell) == "as expected"
    found = judged("positive control", cell)
    assert found is not None and "40 % of the FLOPs are not executed" in found.why and "1.50x (95 % CI" in found.why


@pytest.mark.parametrize(
    ("speed", "executed"), [(1.0, 0.6), (0.8, 0.6), (1.5, 1.0)], ids=["no faster", "slower", "faster, but all executed"]
)
def test_a_positive_control_that_is_no_faster_or_saves_nothing_did_not_come_out(speed: float, executed: float) -> None:
    cell = ran(speed, flops=flops(executed * DENSE, 0.6 * DENSE), ideal=1 / 0.6)
    assert verdict("positive control", cell) == "not as expected"


def test_a_null_control_shows_no_difference_and_claims_no_saving() -> None:
    assert verdict("null control", ran(0.99, flops=flops(), ideal=1.0)) == "as expected"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([ran(1.2, flops=flops(), ideal=1.0)], "nothing can be saved"),
        ([ran(1.2, batch=1, flops=flops(), ideal=1.0), ran(1.0, flops=flops(), ideal=1.0)], "at batch 1 it is 1.20x"),
        ([ran(0.8, flops=flops(), ideal=1.0)], "slower, and nothing but deciding was added"),
        ([ran(1.0, flops=flops(0.7 * DENSE, 0.7 * DENSE), ideal=1 / 0.7)], "said to save 30 % of the FLOPs"),
    ],
    ids=["faster", "faster at another batch size", "slower", "a claim"],
)
def test_a_null_control_that_differs_or_claims_did_not_come_out(cells: list[Cell], said: str) -> None:
    found = judged("null control", *cells)
    assert found is not None and found.verdict == "not as expected" and said in found.why


@pytest.mark.parametrize(
    ("slower_there", "verdict_"), [(1.12, "as expected"), (1.0, "not as expected"), (1.3, "not as expected")]
)
def test_a_null_control_is_set_against_the_baseline_in_its_own_engine(slower_there: float, verdict_: str) -> None:
    cell = ran(0.9, flops=flops(), ideal=1.0)
    engine = Factor(name="engine", value=slower_there, low=0.99 * slower_there, high=1.01 * slower_there, how="control")
    waterfall = Waterfall(baseline="ResNet-38", ideal=1.0, speedup=0.9, factors=[engine])
    changes = {"deployed": True, "deployed_speedups": cell.speedups, "deployed_waterfall": waterfall}
    found = judged("null control", cell.model_copy(update=changes))
    assert found is not None and found.verdict == verdict_
    assert "in the same engine" in found.why and f"{0.9 * slower_there:.2f}x" in found.why


@pytest.mark.parametrize("role", ["positive control", "null control"])
@pytest.mark.parametrize(
    "cells",
    [
        [],
        [made_up.refused("compaction", 32, "no such operator")],
        [made_up.cell("compaction", 32, None)],
        [ran(1.5, flops=flops(UNKNOWN, UNKNOWN), ideal=None), made_up.cell("ResNet-38", 32, None, kind="baseline")],
        [ran(1.0, flops=None, ideal=None)],
    ],
    ids=["nothing", "refused", "no speed-up", "FLOPs unknown", "FLOPs not counted"],
)
def test_missing_figures_never_pass(role: Role, cells: list[Cell]) -> None:
    assert verdict(role, *cells) != "as expected"


def test_no_difference_that_could_not_have_been_seen_is_not_judged() -> None:
    for cell in (
        ran(0.97, width=0.25, flops=flops(), ideal=1.0),
        ran(1.0, resolution=0.3, flops=flops(), ideal=1.0),
        ran(1.0, resolution=None, flops=flops(), ideal=1.0),
    ):
        assert verdict("null control", cell) == "not judged"


def test_workloads_that_come_along_have_both_kinds_and_a_varied_one_has_none() -> None:
    roles = {name: load_spec(name).role for name in workload_files()}
    assert {name for name, role in roles.items() if role == "null control"} == {"nbdt_digits", "nbdt_cifar10"}
    positive = {"tome_deit_s_synthetic", "dynvit_deit_s_synthetic"}
    assert {name for name, role in roles.items() if role == "positive control"} == positive
    assert load_spec("tome_deit_s_synthetic@r=1").role is None
