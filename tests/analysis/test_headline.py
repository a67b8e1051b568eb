"""The cell a workload is judged by."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.analysis.gap import primary_speedup
from dynbench.analysis.headline import SOURCES, contest, headline
from dynbench.analysis.verdict import verdict
from dynbench.report.content import OUTCOMES
from dynbench.store.schema import Cell
from tests.analysis.cells import baseline, cell, decisions, info

FASTER, UNCLEAR, SLOWER = (1.2, 1.17, 1.24), (1.3, 0.9, 1.7), (0.9, 0.88, 0.92)
LABELS = {"learned": "learned", "replay": "replay", "published": "published", "synthetic": "synthetic keep=0.50"}


def best(*cells: Cell) -> str | None:
    found = headline("skipnet38", cells)
    return None if found is None else f"{found.cell.arm.title} at {found.cell.batch_size}"


def test_what_is_certain_counts_before_how_much() -> None:
    assert best(cell("masking", UNCLEAR), cell("compaction", FASTER), cell("cascading", SLOWER)) == "compaction at 32"
    assert best(cell("masking", UNCLEAR), cell("cascading", SLOWER)) == "masking at 32"


def test_the_largest_batch_size_counts() -> None:
    assert best(cell("compaction", FASTER, batch_size=8), cell("masking", SLOWER, batch_size=32)) == "masking at 32"


def test_a_strategy_that_makes_no_decision_is_no_entrant_whatever_its_name() -> None:
    assert best(cell("dense", FASTER)) is None
    assert best(cell("dense", FASTER, static_twin=False)) == "dense at 32"
    assert best(cell("mine", FASTER, static_twin=True)) is None


def test_baselines_controls_and_other_workloads_are_no_entrants() -> None:
    others = [
        cell("ResNet-20", FASTER, kind="baseline"),
        cell("compaction", FASTER, kind="control", live=True),
        cell("compaction", FASTER, workload="another"),
    ]
    assert contest("skipnet38", [*others, baseline()]) is None
    assert best(*others, cell("masking", SLOWER)) == "masking at 32"


def test_where_nothing_was_timed_there_are_entrants_but_no_best() -> None:
    found = contest("skipnet38", [cell("compaction", status="failed", reason="out of memory")])
    assert found is not None and found.best is None and not found.ranked
    assert [c.arm.name for c in found.entrants] == ["compaction"]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["masking", "compaction", "cascading"]),
            st.sampled_from(["eager", "compile"]),
            st.sampled_from([1, 8]),
            st.sampled_from(SOURCES),
            st.sampled_from([FASTER, UNCLEAR, SLOWER, None]),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda drawn: drawn[:4],
    )
)
def test_the_verdict_is_about_the_headline(
    drawn: list[tuple[str, str, int, str, tuple[float, float, float] | None]],
) -> None:
    cells = [
        cell(name, speedup, engine=engine, batch_size=size, decisions=decisions(LABELS[source]))
        for name, engine, size, source, speedup in drawn
    ]
    found = headline("skipnet38", cells)
    text = verdict(info(), cells, "this CPU")
    timed = [c for c in cells if primary_speedup(c) is not None]
    if found is None:
        assert not timed and "On this CPU" not in text
        return
    sources = [SOURCES.index(c.decisions.source) for c in timed]
    assert SOURCES.index(found.cell.decisions.source) == min(sources)
    assert f"at batch {found.cell.batch_size}" in text
    assert found.cell.arm.title in text.split("On this CPU")[1]
    assert set(OUTCOMES) == {"faster", "slower", "unclear"}
