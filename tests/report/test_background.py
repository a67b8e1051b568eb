"""What a reader needs to judge the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.report.background import _merged, not_measured_section
from dynbench.store.run import Run
from dynbench.store.schema import Warning_
from tests.report.made_up import cell, info, manifest


@pytest.mark.parametrize(
    ("units", "dtype", "said"),
    [
        (["amx_bf16"], "float32", True),
        (["amx_bf16"], "bfloat16", False),
        ([], "float32", False),
        (None, "float32", False),  # of an earlier dynbench, which did not ask
    ],
)
def test_a_faster_type_that_was_not_measured_is_said(units: list[str] | None, dtype: str, said: bool) -> None:
    hardware = {"name": "Made-up CPU"} | ({} if units is None else {"bfloat16_units": units})
    cells = [cell("masking", 1, 0.7, dtype=dtype)]
    run = Run(Path("nowhere"), manifest(info(), hardware=hardware), cells)
    (block,) = not_measured_section(run, []).blocks
    assert ("amx_bf16" in str(block)) == said


def warning(text: str, remedy: str = "more time") -> Warning_:
    return Warning_(id="DB-PREC-01", text=text, remedy=remedy)


def test_warnings_that_differ_in_percentages_alone_are_one_from_where_to_where() -> None:
    found = [
        ("a", warning("an interval of +-9%; asked for was +-2%")),
        ("b", warning("an interval of +-10%; asked for was +-2%")),
        ("c", warning("an interval of +-17.5%; asked for was +-2%")),
        ("d", warning("5 rounds of 7")),
        ("e", warning("6 rounds of 7")),
        ("f", warning("an interval of +-9%; asked for was +-2%", remedy="a quieter machine")),
    ]
    assert {w.text + ": " + w.remedy: places for w, places in _merged(found).items()} == {
        "an interval of +-9% to 17.5%; asked for was +-2%: more time": ["a", "b", "c"],
        "5 rounds of 7: more time": ["d"],
        "6 rounds of 7: more time": ["e"],
        "an interval of +-9%; asked for was +-2%: a quieter machine": ["f"],
    }
