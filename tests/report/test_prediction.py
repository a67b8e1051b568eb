"""The section of the cost model, on cells whose times follow from a law."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynbench.analysis.cost_model import errors, model_of
from dynbench.report.prediction import Predicted, predicted, prediction_overview, prediction_section, scatter
from dynbench.report.tables import Section
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


def foretold(names: list[str]) -> list[Predicted]:
    """The made-up model of each of these workloads."""
    found = []
    for name in names:
        known, scaling = made_up()
        mine = [c.model_copy(update={"workload": name, "again": AGAIN}) for c in known]
        found.append(predicted(info(name), mine, model_of(mine, scaling.model_copy(update={"workload": name}))))
    return found


def texts(sections: list[Section]) -> dict[str | None, list[str]]:
    """What is said below each heading of the section."""
    (section,) = sections
    return {block.title: list(block.text) for block in section.blocks if block.text}


def test_several_workloads_have_their_errors_together_and_each_its_own() -> None:
    found = foretold(["b", "a"])
    overview = prediction_overview({one.info.name: one.info for one in found}, [one.model for one in found])
    (together,) = texts(overview)["All workloads"]
    assert together.startswith("Strategies that the host plays, 2 workloads: Of 20 held-out cells")
    assert texts(prediction_section(found))["a"][0].startswith("Of 10 held-out cells the prediction is off by")
    (table,) = (block.table for block in overview[0].blocks if block.table)
    median = 100 * errors(found[0].held_out).median  # type: ignore[union-attr]
    assert [row[0].text for row in table.rows] == ["a", "b"] and table.rows[0][1].text == "10"
    assert [row[2].sort for row in table.rows] == [pytest.approx(median)] * 2
    assert prediction_overview({}, [one.model for one in found]) == []


def test_a_workload_with_too_few_cells_says_so_in_the_table() -> None:
    (one,) = foretold(["a"])
    few = replace(one.model, predictions=one.held_out[:3])
    (table,) = (block.table for block in prediction_overview({"a": one.info}, [few])[0].blocks if block.table)
    assert table.rows[0][1].text == "3" and "3 held-out cells are too few" in str(table.rows[0][-1].note)


def test_a_workload_has_the_doubt_of_its_machine() -> None:
    said = texts(prediction_section(foretold(["a"])))
    assert list(said) == ["a"]
    assert any("measured twice in the same rounds, differs by 3.0 %" in text for text in said["a"])


def test_too_few_cells_give_no_figure() -> None:
    cells, scaling = made_up()
    mine = [c.model_copy(update={"workload": "a"}) for c in cells[:3]]
    found = predicted(info("a"), mine, model_of(mine, scaling.model_copy(update={"workload": "a"})))
    assert isinstance(found.judged, str) and scatter(found, {}) is None and found.again is None
