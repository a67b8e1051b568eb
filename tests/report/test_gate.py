"""What a check found, in the forms that CI systems read."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from dynbench.report.gate import to_bencher, to_github_action_benchmark, to_junit, to_markdown
from dynbench.store.schema import Warning_
from tests.report.made_up_gate import ANSWERS, LESS, cell, gate


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
        "tests": "5",
        "failures": "2",
        "skipped": "1",
        "errors": "0",
    }
    assert len(suite.findall("testcase/failure")) == 2 and len(suite.findall("testcase/skipped")) == 1


def test_trackers_get_the_time_of_the_head_in_their_units() -> None:
    found = gate(cell("SLOWER", 1.1))
    (row,) = json.loads(to_github_action_benchmark(found))
    assert (row["name"], row["unit"], row["value"]) == ("my_net: compaction, batch 32", "ms", 11.0)
    latency = json.loads(to_bencher(found))["my_net: compaction, batch 32"]["latency"]
    assert latency["value"] == pytest.approx(11e6)
    assert latency["lower_value"] < latency["value"] < latency["upper_value"]


HOSTILE = "</testcase>\x1b[31m[/b]|`b`\x00<img src=x onerror=y>\ud800\n# z"


def test_hostile_words_are_text_in_every_form() -> None:
    change = ANSWERS.model_copy(update={"what": HOSTILE, "text": HOSTILE})
    names = {"title": HOSTILE, "workload": HOSTILE, "base": HOSTILE, "head": HOSTILE, "machine": HOSTILE}
    doubt = Warning_(id="DB-BASE-01", text=HOSTILE, remedy=HOSTILE)
    cells = [
        cell(outcome, 1.1, change).model_copy(update={"name": HOSTILE, "reason": HOSTILE})
        for outcome in ("SLOWER", "AMBIGUOUS")
    ]
    plain = gate(cell("SLOWER", 1.1, ANSWERS), cell("AMBIGUOUS", 1.1, ANSWERS), warnings=[doubt], notes=["a"])
    found = plain.model_copy(update={**names, "notes": [HOSTILE], "cells": cells})
    summary = to_markdown(found)
    assert all(line.isprintable() for line in summary.splitlines())
    assert len(summary.splitlines()) == len(to_markdown(plain).splitlines())
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 and {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    outside_of_code = re.sub(r"(`+) .*? \1(?!`)", "", summary)
    assert "<" not in outside_of_code and not re.search(r"(?<!\\)`", outside_of_code)
    suite = ElementTree.fromstring(to_junit(found).encode())
    assert suite.get("tests") == "4" and suite.get("failures") == "3"
    shown = HOSTILE.encode("unicode_escape").decode().replace("\\n", "\n")
    assert suite.find("testcase").get("name") == f"time of {shown}"  # type: ignore[union-attr]
    assert suite.findtext("testcase/failure") == shown and shown in str(suite.findtext("system-out"))


def test_what_the_base_took_from_the_head_is_told() -> None:
    found = gate(cell(), notes=["the base uses the working tree's weights/, which git does not have"])
    assert "- Note: the base uses the working tree's weights/, which git does not have." in to_markdown(found)
    assert "working tree's weights/" in str(ElementTree.fromstring(to_junit(found)).findtext("system-out"))
