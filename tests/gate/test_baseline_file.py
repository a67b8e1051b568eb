"""What a baseline file may hold; that it is compared is tested with the check."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynbench.devices.cpu import cpu_model
from dynbench.errors import UserError
from dynbench.experiment.spec import Options
from dynbench.gate.baseline_file import Baseline, read, save
from dynbench.gate.cells import GateCell
from dynbench.gate.exact import exact_changes
from dynbench.gate.trees import CannotTell
from dynbench.store.schema import Arm, Interval
from tests.cli import TINY, call

ARM = Arm(kind="strategy", strategy="cascading")
FACTS = {
    "executed FLOPs": 512.0,
    "operator calls": 40.0,
    "host waits": {"unavailable": "a CPU waits for nothing"},
    "decisions": "0123456789abcdef",
}
RATIO = {"value": 0.8, "low": 0.7, "high": 0.9, "confidence": 0.95}
TABLE: dict[str, Any] = {
    "dynbench_check": 3,
    "workload": "tiny",
    "head": "4f2a91c0",
    "machine": cpu_model(),
    "device": "cpu",
    "threads": 1,
    "started": "2026-01-01T00:00:00+00:00",
    "stream_hash": "fedcba9876543210",
    "cells": [
        {"arm": ARM.model_dump(), "batch_size": size, "ratio": RATIO, "resolution": 0.01, "facts": FACTS}
        for size in (1, 4)
    ],
}


def changed(table: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    copy = json.loads(json.dumps(table))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def refusal(file: Path, content: str | bytes) -> str:
    """The sentence with which a content is refused."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    baseline = Baseline.model_validate(TABLE)
    save(tmp_path / "b.json", baseline)
    assert read(tmp_path / "b.json") == baseline
    assert json.loads((tmp_path / "b.json").read_text()) == TABLE


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("cells", 0, "ratio", "value"), 0, "cells.0.ratio.value = 0: input should be greater than"),
        (("cells", 0, "ratio", "low"), -0.5, "cells.0.ratio.low = -0.5: input should be greater than"),
        (("cells", 0, "ratio", "low"), 0.85, "must be low <= value <= high"),
        (("cells", 0, "ratio", "high"), 1e999, "is not JSON: Infinity is no number of JSON"),
        (("cells", 0, "ratio", "confidence"), 95, "cells.0.ratio.confidence = 95: input should be less than 1"),
        (("cells", 0, "resolution"), float("nan"), "is not JSON: NaN is no number of JSON"),
        (("cells", 0, "resolution"), "0.1", "cells.0.resolution = '0.1': input should be a valid number"),
        (("cells", 0, "batch_size"), 0, "cells.0.batch_size = 0: input should be greater than or equal to 1"),
        (("cells", 0, "batch_size"), 4, "'cascading, batch 4' is there twice"),
        (("cells", 0, "batch_size"), True, "cells.0.batch_size = True: input should be a valid integer"),
        (("cells", 0, "arm", "kind"), "x", "cells.0.arm.kind = 'x': input should be 'strategy'"),
        (("cells", 0, "arm", "live"), 1, "cells.0.arm.live = 1: input should be a valid boolean"),
        (("cells", 0, "arm", "extra"), 1, "unknown key cells.0.arm.extra"),
        (("cells", 0, "facts", "executed FLOPs"), -1, "'executed FLOPs' must be 0 or more, not -1"),
        (("cells", 0, "facts", "executed FLOPs"), "many", "'executed FLOPs' must be a finite number, or say why"),
        (("cells", 0, "facts", "host waits"), {"unavailable": 3}, "'host waits' must be a finite number, or say why"),
        (("cells", 0, "facts", "decisions"), 5, "'decisions' must be a hash of 16 to 64 hexadecimal digits, not 5"),
        (("cells", 0, "facts"), {}, "key 'decisions' is missing"),
        (("cells", 0), [], "cells.0 = []: input should be a valid dictionary"),
        (("cells",), [], "cells = []: list should have at least 1 item"),
        (("cells",), {"cascading, batch 8": {}}, "cells = {'cascading, batch 8': {}}: input should be a valid list"),
        (("threads",), -1, "threads = -1: input should be greater than or equal to 1"),
        (("threads",), 10**30, "has more than 20 digits"),
        (("stream_hash",), "abc", "stream_hash = 'abc': string should match pattern"),
        (("machine",), None, "machine = None: input should be a valid string"),
        (("rows",), 1, "unknown key rows"),
        (("dynbench_check",), 2, "has version 2, of an earlier dynbench that measured differently; write it again"),
        (("dynbench_check",), 4, "has version 4, of a later dynbench; this one reads 3"),
        (("dynbench_check",), 3.0, "is no baseline: it has no 'dynbench_check'"),
    ],
)
def test_a_value_that_no_measurement_gives_is_refused(
    path: tuple[Any, ...], value: Any, said: str, tmp_path: Path
) -> None:
    assert said in refusal(tmp_path / "b.json", json.dumps(changed(TABLE, path, value)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        (json.dumps(TABLE)[:-9], "is not JSON"),
        ("[]", "is no baseline"),
        ("[" * 100_000, "is nested too deeply"),
        (b"\xff\xfe", "is not JSON: 'utf-8' codec can't decode"),
        (json.dumps(TABLE).replace('"threads"', '"device": "cpu", "threads"'), "key 'device' is there twice"),
        (b" " * (2**24 + 1), "is larger than 16 MiB"),
        (json.dumps(TABLE).replace('"resolution": 0.01', '"resolution": 1e999', 1), "input should be a finite number"),
    ],
    ids=range(8),
)
def test_what_is_no_json_is_refused(content: str | bytes, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path / "b.json", content)


def test_it_must_have_what_is_about_to_be_measured() -> None:
    baseline, cell = Baseline.model_validate(TABLE), GateCell(arm=ARM, batch_size=4, batches=1)
    baseline.check_prepared([cell], "fedcba9876543210")
    with pytest.raises(CannotTell, match="measured with a different value of stream hash: fedcba9876543210, not abc"):
        baseline.check_prepared([cell], "abc")
    masking = cell.model_copy(update={"arm": ARM.model_copy(update={"strategy": "masking"})})
    with pytest.raises(CannotTell, match="has no masking, batch 4; it has cascading, batch 1, cascading, batch 4"):
        baseline.check_prepared([cell, masking], "fedcba9876543210")


def test_the_command_refuses_before_it_measures(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps(changed(TABLE, ("cells", 0, "ratio", "value"), -1)))
    result = call("check", TINY, "--baseline", file)
    assert result.exit_code == 2 and result.output.startswith(f"Error: baseline {file}: cells.0.ratio.value = -1: ")
    file.write_text(json.dumps(changed(TABLE, ("workload",), "another")))
    result = call("check", TINY, "--baseline", file)
    assert result.exit_code == 2 and result.output == "Error: the baseline is of workload 'another', not of 'tiny'\n"
    file.write_text(json.dumps(changed(TABLE, ("machine",), "another")))
    result = call("check", TINY, "--baseline", file)
    assert result.exit_code == 3 and "measured with a different value of machine: another, not" in result.output


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in a JSON value."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


VALUES = [None, True, 0, -1, 1e-300, 1e300, 2**63, 0.5, "", "x", "\x00\x1b", "\ud800", [], {}, [[]], {"unavailable": 1}]
LETTERS = b'{}[]",:0-e\x00\xff\\u NaI'


@settings(
    max_examples=500, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused_in_one_sentence(data: st.DataObject, tmp_path: Path) -> None:
    table = TABLE
    for _ in range(data.draw(st.integers(0, 2))):
        table = changed(table, data.draw(st.sampled_from(list(places(table)))), data.draw(st.sampled_from(VALUES)))
    content = bytearray(json.dumps(table).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        at, letter = data.draw(st.integers(0, len(content) - 1)), data.draw(st.sampled_from(LETTERS))
        how = data.draw(st.sampled_from(["replace", "insert", "cut", "double"]))
        if how == "replace":
            content[at] = letter
        elif how == "insert":
            content.insert(at, letter)
        elif how == "cut":
            del content[at : at + data.draw(st.integers(1, 200))]
        else:
            content[at:at] = content[at : at + data.draw(st.integers(1, 200))]
        content = content or bytearray(b" ")
    file = tmp_path / "b.json"
    file.write_bytes(bytes(content))
    try:
        baseline = read(file)
    except UserError as e:
        assert "\n" not in str(e) and len(str(e)) < 600
        return
    with contextlib.suppress(UserError, CannotTell):  # what follows from a file that is taken
        baseline.check_comparable("tiny", Options())
        cell = GateCell(arm=ARM, batch_size=4, batches=1)
        baseline.check_prepared([cell], "fedcba9876543210")
        change, resolution = baseline.since_then(cell, Interval(value=1.0, low=0.9, high=1.1), 0.01)
        assert 0 < change.low <= change.value <= change.high and resolution >= 0.01
        list(exact_changes(baseline.cell(cell).facts, FACTS))
