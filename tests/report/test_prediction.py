"""The section of the cost model, on cells whose times follow from a law."""

from __future__ import annotations

from dynbench.analysis.cost_model import model_of
from dynbench.report.prediction import predicted, prediction_section, scatter
from dynbench.store.schema import Interval, WorkloadInfo
from tests.analysis.scalings import made_up

AGAIN = Interval(value=1.03, low=1.0, high=1.06)


def info(name: str) -> WorkloadInfo:
    return WorkloadInfo(
        name=name,
        title=name,
        model="made up",
        provenance="own model",
        inputs="none",
        stream_hash="0",
        stream_items=64,
    )


def texts(names: list[str]) -> dict[str | None, list[str]]:
    """What is said below each heading of the section."""
    found = []
    for name in names:
        known, scaling = made_up()
        mine = [c.model_copy(update={"workload": name, "again": AGAIN}) for c in known]
        found.append(predicted(info(name), mine, model_of(mine, scaling.model_copy(update={"workload": name}))))
    (section,) = prediction_section(found)
    return {block.title: list(block.text) for block in section.blocks if block.text}


def test_several_workloads_have_their_errors_together_and_each_its_own() -> None:
    said = texts(["a", "b"])
    assert list(said) == ["All workloads", "a", "b"]
    (together,) = said["All workloads"]
    assert together.startswith("2 workloads, of strategies that the host plays: Of 20 held-out cells")
    assert said["a"][0].startswith("Of 10 held-out cells the prediction is off by")


def test_one_workload_is_not_said_twice_and_has_the_doubt_of_its_machine() -> None:
    said = texts(["a"])
    assert list(said) == ["a"]
    assert any("measured twice in the same rounds, differs by 3.0 %" in text for text in said["a"])


def test_too_few_cells_give_no_figure() -> None:
    cells, scaling = made_up()
    mine = [c.model_copy(update={"workload": "a"}) for c in cells[:3]]
    found = predicted(info("a"), mine, model_of(mine, scaling.model_copy(update={"workload": "a"})))
    assert isinstance(found.judged, str) and scatter(found, {}) is None and found.again is None
