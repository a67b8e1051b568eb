"""A small share of `make fuzz`, and what it found."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import fuzz, mutations
from tests.faults.fuzz import KINDS, Hang, Kind
from tests.faults.here import Here

INPUTS = int(os.environ.get("DYNBENCH_FUZZ_INPUTS", "4"))  # of each kind, times its share
SEED = int(os.environ.get("DYNBENCH_FUZZ_SEED", "0"))
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid file of every kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.prepare(folder)
    return folder


@pytest.fixture
def here() -> Iterator[Here]:
    with fuzz.in_this_process() as launcher:
        yield launcher


def command(kind: Kind, folder: Path, index: int = 0) -> tuple[int, str]:
    code, output = fuzz.call(*kind.command(folder)[index])
    mutations.remove(folder / "out")
    return code, output


@every_kind
def test_a_whole_file_is_read(kind: Kind, ready: Path, here: Here) -> None:
    code, output = command(kind, ready)
    assert code == 0 or (code == 2 and kind.read in output), output
    assert here.faults == []


@every_kind
def test_a_damaged_file_is_read_or_refused_in_a_sentence(kind: Kind, ready: Path, here: Here) -> None:
    inputs = INPUTS * kind.share
    tally = fuzz.try_kind(kind, ready, seed=SEED, numbers=range(inputs), launcher=here, until=None)
    assert tally.found == [] and tally.refused + tally.read == tally.inputs == inputs


@every_kind
def test_what_is_no_file_is_refused_in_a_sentence(kind: Kind, ready: Path, here: Here) -> None:
    file = next(file for pattern in kind.files for file in sorted(ready.glob(pattern)))
    content = file.read_bytes()
    for place in mutations.PLACES:
        mutations.remove(file)
        place(file)
        try:
            with fuzz.limited():
                command(kind, ready)
            assert here.faults == [], place.__name__
        finally:
            mutations.remove(file)
            file.write_bytes(content)


def test_an_input_without_an_end_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "HANGS_AFTER_S", 0.05)
    with pytest.raises(Hang), fuzz.limited():
        while True:
            pass


def test_a_fault_is_counted_and_named(ready: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> tuple[int, str]:
        raise AssertionError("a traceback")

    monkeypatch.setattr(fuzz, "call", broken)
    kind = next(k for k in KINDS if k.name == "card")
    tally = fuzz.try_kind(kind, ready, seed=SEED, numbers=range(2), launcher=here, until=None)
    assert (tally.inputs, tally.faults) == (2, 2)
    assert tally.found[0].startswith("card, seed ") and tally.found[0].endswith("net.json: a traceback")


def test_the_mutations_change_what_they_are_given() -> None:
    content = b'{"a": 1.5, "b": [1, 2]}\n'
    for damage in {*mutations.JSON, *mutations.TOML}:
        changed = [damage(random.Random(n), content) for n in range(20)]
        assert any(c != content for c in changed), damage.__name__


def test_a_history_may_be_a_link_to_itself(ready: Path, here: Here) -> None:
    (ready / "loop.db").symlink_to("loop.db")
    code, output = fuzz.call("history", "add", ready / "whole", "--db", ready / "loop.db")
    assert code == 2 and "loop.db" in output


@pytest.mark.parametrize("value", ["1e308", "1e-308"])
def test_an_amount_that_nothing_can_have_is_refused(value: str, ready: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(ready / "whole", run)
    cells = run / "cells.jsonl"
    text, changed = re.subn(r'"stream_ms": ?[0-9.e+-]+', f'"stream_ms": {value}', cells.read_text())
    assert changed
    cells.write_text(text)
    code, output = fuzz.call("report", run, "--format", "md", "--out", tmp_path / "out")
    assert code == 2 and "stream_ms" in output and "a number between 1e-30 and 1e+30 is expected" in output


@pytest.mark.parametrize(
    ("pattern", "to", "said"),
    [
        (rb'"label": ?"', b'"label":"\xed\xa0\x80', "corrupt"),
        (rb'"label": ?"', b'"label":"\\ud800', "corrupt"),
        (rb'"resolution": ?[0-9.e+-]+', b'"resolution":-1', "from 0 on"),
        (rb'("again": ?\{"value": ?)[0-9.e+-]+', rb"\g<1>-1", "above 0"),
    ],
    ids=["half a character", "half a pair", "a resolution below 0", "a ratio below 0"],
)
def test_a_cell_that_nobody_measured_is_refused(
    pattern: bytes, to: bytes, said: str, ready: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ready / "whole", run)
    cells = run / "cells.jsonl"
    content, changed = re.subn(pattern, to if to.startswith(rb"\g") else lambda _: to, cells.read_bytes())
    assert changed
    cells.write_bytes(content)
    for command in (("export", run, "--out", tmp_path / "out"), ("compare", run, ready / "whole")):
        code, output = fuzz.call(*command)
        assert code == 2 and "cells.jsonl:" in output and said in output


def test_a_network_slower_than_any_is_refused(ready: Path, here: Here, tmp_path: Path) -> None:
    line = tmp_path / "line.toml"
    line.write_text("round_trip_ms = 1e-320\njitter_ms = 2.5\n")
    code, output = fuzz.call("partition", ready / "net.toml", "--network", line, "--rounds", 1)
    assert code == 2 and "round_trip_ms" in output and "from 1e-09" in output
