"""What is written is strict JSON, and comes back as it was."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from dynbench.store.jsonable import to_json
from dynbench.store.schema import Cell, Latency, Manifest
from dynbench.unavailable import Unavailable
from tests.store.records import cell, cells, manifest


def strict(text: str) -> dict[str, object]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(cells)
def test_a_cell_comes_back_from_one_line(written: Cell) -> None:
    line = to_json(written)
    assert "\n" not in line
    assert Cell.model_validate(strict(line)) == written


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_quantity_that_is_no_number_becomes_unavailable(value: float) -> None:
    found = Cell.model_validate(strict(to_json(cell("masking", bytes_touched=value, memory={"peak_bytes": value}))))
    assert found.bytes_touched == Unavailable(unavailable=f"not a finite number: {value}")
    assert found.memory is not None and isinstance(found.memory.peak_bytes, Unavailable)


def test_an_optional_number_that_is_none_becomes_null() -> None:
    table = strict(to_json(cell("masking", max_error=math.nan, status="failed", reason="wrong answer")))
    assert table["max_error"] is None
    assert table["reason"] == "wrong answer"


@pytest.mark.parametrize("changes", [{"batch_paths": [1.0, math.nan]}, {"phases": {"body_ms": math.inf}}])
def test_a_number_that_must_be_there_is_named(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="batch_paths|body_ms"):
        to_json(cell("masking", **changes))


def test_a_latency_without_a_number_is_refused() -> None:
    no = Unavailable(unavailable="no")
    latency = Latency(
        stream_ms=math.nan, item_ms=1.0, batch_p50_ms=1.0, batch_p90_ms=no, batch_p99_ms=no, device_stream_ms=no
    )
    with pytest.raises(ValueError, match=r"Latency\.stream_ms is nan"):
        to_json(latency)


def test_free_tables_take_what_json_does_not_know() -> None:
    hardware = {
        "load": np.float32(0.5),
        "clocks_mhz": np.array([1, 2]),
        "nan": math.nan,
        "at": Path("/proc"),
        "n": (1, {2: 3}),
    }
    found = Manifest.model_validate(strict(to_json(manifest(hardware=hardware), indent=1)))
    assert found.hardware == {"load": 0.5, "clocks_mhz": [1, 2], "nan": None, "at": "/proc", "n": [1, {"2": 3}]}
