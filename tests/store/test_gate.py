"""What a check found, in the forms that CI systems read."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from dynbench.store.gate import (
    CellCheck,
    ExactChange,
    Gate,
    change_text,
    to_bencher,
    to_github_action_benchmark,
    to_junit,
    to_markdown,
)
from dynbench.store.schema import Interval, Warning_

ANSWERS = ExactChange(what="answers", base="", head="x", regression=True, text="answers differ: by up to 0.3")
LESS = ExactChange(what="executed FLOPs", base=9.0, head=8.0, regression=False, text="executed FLOPs: 9 -> 8 (-11.1 %)")


def cell(outcome: str = "SAME", change: float = 1.0, *exact: ExactChange) -> CellCheck:
    return CellCheck.model_validate(
        {
            "name": "compaction, batch 32", "outcome": outcome, "reason": "because",
            "change": {"value": change, "low": change - 0.01, "high": change + 0.01},
            "again": {"value": 1.0, "low": 0.99, "high": 1.01}, "resolution": 0.012, "confirmed": outcome == "SLOWER",
            "base_ms": 10.0, "head_ms": 10.0 * change, "laps": 50, "processes": 5, "exact": list(exact),
        }
    )  # fmt: skip


def gate(*cells: CellCheck, **changes: Any) -> Gate:
    told = {
        "workload": "my_net", "title": "My network", "base": "origin/main (4f2a91c0)", "head": "77aa00bb",
        "machine": "a CPU", "device": "cpu", "threads": 1, "started": "2026-01-01T00:00:00+00:00", "seconds": 41.3,
        "matters": 0.03, "cells": cells, **changes,
    }  # fmt: skip
    return Gate.model_validate(told)


@pytest.mark.parametrize(
    ("cells", "code", "said"),
    [
        ([cell()], 0, "No regression."),
        ([cell("FASTER", 0.9)], 0, "No regression; faster: compaction, batch 32."),
        ([cell(), cell("SLOWER", 1.1)], 1, "Regression: slower: compaction, batch 32."),
        ([cell("AMBIGUOUS", 1.03)], 3, "Could not tell: compaction, batch 32."),
        ([cell("AMBIGUOUS", 1.03), cell("SLOWER", 1.1)], 1, "Regression: slower: compaction, batch 32."),
        ([cell("SAME", 1.0, ANSWERS)], 1, "Regression: answers differ: by up to 0.3."),
        ([cell("SAME", 1.0, LESS)], 0, "No regression."),
    ],
)
def test_the_exit_code_and_the_sentence_follow_from_the_cells(cells: list[CellCheck], code: int, said: str) -> None:
    found = gate(*cells)
    assert (found.exit_code, found.sentence) == (code, said)


def test_the_summary_has_a_row_for_every_cell_and_every_reason() -> None:
    doubt = Warning_(id="DB-LOAD-02", text="processes waited", remedy="stop them")
    text = to_markdown(gate(cell("SLOWER", 1.1, LESS), warnings=[doubt]))
    assert (
        "| compaction, batch 32 | 10.000 | 11.000 | +10.0 % (+9.0 to +11.0) | 1.2 % | **SLOWER**, confirmed |" in text
    )
    assert "- compaction, batch 32: because." in text and "9 -> 8 (-11.1 %) (no regression)." in text
    assert "Warning DB-LOAD-02" in text and "are the same on both sides" not in text
    assert "are the same on both sides" in to_markdown(gate(cell()))


def test_junit_counts_failures_and_what_could_not_be_told() -> None:
    found = gate(cell("SLOWER", 1.1), cell("AMBIGUOUS", 1.02), cell("SAME", 1.0, ANSWERS, LESS))
    suite = ElementTree.fromstring(to_junit(found))
    assert {k: suite.get(k) for k in ("tests", "failures", "skipped", "errors")} == {
        "tests": "5", "failures": "2", "skipped": "1", "errors": "0",
    }  # fmt: skip
    assert len(suite.findall("testcase/failure")) == 2 and len(suite.findall("testcase/skipped")) == 1


def test_trackers_get_the_time_of_the_head_in_their_units() -> None:
    found = gate(cell("SLOWER", 1.1))
    (row,) = json.loads(to_github_action_benchmark(found))
    assert (row["name"], row["unit"], row["value"]) == ("my_net: compaction, batch 32", "ms", 11.0)
    latency = json.loads(to_bencher(found))["my_net: compaction, batch 32"]["latency"]
    assert latency["value"] == pytest.approx(11e6)
    assert latency["lower_value"] < latency["value"] < latency["upper_value"]


def test_a_change_is_told_in_percent() -> None:
    assert change_text(Interval(value=0.951, low=0.94, high=0.9605)) == "-4.9 % (-6.0 to -3.9)"
