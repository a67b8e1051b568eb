"""A trace says what was decided where, survives a file, and refuses what it does not belong to."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dynbench.dynamic import Trace, TraceError
from dynbench.dynamic.trace import SCHEMA_VERSION, Entry


def small() -> Trace:
    """Three samples: a Skip, a Route over two tokens each, and a point that nobody reached."""
    skip = Entry(torch.tensor([True, False, True]), torch.tensor([True, True, False]))
    route = Entry(torch.tensor([[0, 2], [1, -1], [3, 0], [2, 1], [0, 1], [1, 3]]), torch.ones(6, dtype=torch.bool))
    never = Entry(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool))
    entries = {("skip", ()): skip, ("route", (2,)): route, ("never", ()): never}
    return Trace(entries, 3, "stream-a", frozenset({"skip", "route", "never"}))


def entries_of(trace: Trace) -> dict[object, tuple[list[object], list[object]]]:
    return {k: (v.tolist(), r.tolist()) for k, (v, r) in trace.entries.items()}


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    items = draw(st.integers(1, 4))
    entries = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=6), max_size=3, unique=True)):
        sizes = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
        n = items * int(torch.tensor(sizes).prod()) if sizes else items
        shape = (n, *draw(st.lists(st.integers(1, 3), max_size=1)))
        random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        value = torch.randint(-1, 4, shape, generator=random)
        if draw(st.booleans()):
            value = value > 0
        entries[name, sizes] = Entry(value, torch.rand(n, generator=random) < draw(st.floats(0, 1)))
    covers = frozenset(name for name, _ in entries) | {"seen by nobody"}
    return Trace(entries, items, draw(st.text(max_size=4)), covers)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(trace=traces())
def test_any_trace_comes_back_from_its_file_as_it_was(trace: Trace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trace.save(Path(folder) / "t")
        back = Trace.load(Path(folder) / "t", trace.stream_hash)
    assert entries_of(back) == entries_of(trace)
    assert (back.items, back.stream_hash, back.covers) == (trace.items, trace.stream_hash, trace.covers)
    assert back == trace
    assert back.hash() == trace.hash()


def test_what_was_not_asked_does_not_count() -> None:
    a, b = small(), small()
    b.entries["skip", ()].value[2] = False  # never asked
    del b.entries["never", ()]
    assert a == b
    assert a.hash() == b.hash()


@pytest.mark.parametrize("change", ["value", "reached", "address", "type"])
def test_a_trace_differs_in_one_decision(change: str) -> None:
    a, b = small(), small()
    entry = b.entries["skip", ()]
    if change == "value":
        entry.value[0] = False
    elif change == "reached":
        entry.reached[2] = True
    elif change == "address":
        b.entries["skip", (1,)] = b.entries.pop(("skip", ()))
    else:
        b.entries["skip", ()] = Entry(entry.value.long(), entry.reached)
    assert a != b
    assert a.hash() != b.hash()


def test_order_of_recording_does_not_matter() -> None:
    a, b = small(), small()
    b.entries = dict(reversed(b.entries.items()))
    assert a == b
    assert a.hash() == b.hash()


def test_a_trace_equals_nothing_but_a_trace() -> None:
    assert small() != "a trace"


def test_recording_in_parts_equals_recording_at_once() -> None:
    decision = torch.tensor([[1, 0], [2, 1], [3, 2], [0, 3]])
    whole, parts = Trace(items=4), Trace(items=4)
    whole.record("p", (4,), torch.arange(4), None, decision)
    for ids in ([2, 0], [3], [1]):
        parts.record("p", (4,), torch.tensor(ids), None, decision[ids])
    assert whole == parts


def test_items_that_do_not_count_are_not_recorded() -> None:
    trace = Trace(items=3)
    trace.record("p", (3,), torch.arange(3), torch.tensor([True, False, True]), torch.tensor([True, True, False]))
    trace.record("p", (3,), torch.arange(3), torch.tensor([False, False, True]), torch.tensor([False, True, True]))
    value, reached = trace.entries["p", ()]
    assert reached.tolist() == [True, False, True]
    assert value.tolist() == [True, False, True]


def test_recorded_decisions_hold_no_graph() -> None:
    trace, scores = Trace(items=2), torch.ones(2, requires_grad=True)
    trace.record("p", (2,), torch.arange(2), None, scores * 2)
    assert not trace.entries["p", ()].value.requires_grad


def test_look_up_finds_decisions_by_id() -> None:
    found = small().look_up("route", (3, 2), torch.tensor([5, 0, 5]))
    assert found is not None
    assert found.tolist() == [[1, 3], [0, 2], [1, 3]]


@pytest.mark.parametrize("ids", [range(6), range(1, 5), range(1, 7, 2), range(2, 2)])
def test_look_up_of_a_range_equals_that_of_its_ids(ids: range) -> None:
    of_range, of_ids = (small().look_up("route", (3, 2), i) for i in (ids, torch.tensor(list(ids), dtype=torch.long)))
    assert of_range is not None and of_ids is not None
    assert of_range.tolist() == of_ids.tolist()


def test_a_point_nobody_reached_is_looked_up_without_answer() -> None:
    trace = small()
    trace.covers |= {"dark"}
    assert trace.look_up("dark", (3,), torch.arange(3)) is None


@pytest.mark.parametrize(
    ("point", "extent", "says"),
    [("other", (3,), "another model: it has no point 'other'"), ("skip", (5,), "a stream of 3 items, not of 5")],
)
def test_a_trace_of_something_else_is_refused(point: str, extent: tuple[int, ...], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        small().look_up(point, extent, torch.tensor([0]))


def test_a_trace_moves_to_a_device_as_it_is() -> None:
    moved = small().to("meta")
    assert all(v.device.type == r.device.type == "meta" for v, r in moved.entries.values())
    assert (moved.items, moved.stream_hash, moved.covers) == (3, "stream-a", small().covers)


def edit(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        about = json.loads(Path(f"{path}.json").read_text())
        Path(f"{path}.json").write_text(json.dumps(about | changes))

    return change


def text(content: str) -> Callable[[Path], object]:
    return lambda path: Path(f"{path}.json").write_text(content)


def table(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tables = load_file(f"{path}.safetensors")
        tables.pop(name)
        save_file(tables if value is None else tables | {name: value}, f"{path}.safetensors")

    return change


def cut(path: Path) -> None:
    whole = Path(f"{path}.safetensors").read_bytes()
    Path(f"{path}.safetensors").write_bytes(whole[: len(whole) // 2])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no addresses": (lambda path: Path(f"{path}.json").unlink(), "not a readable trace"),
    "no tables": (lambda path: Path(f"{path}.safetensors").unlink(), "not a readable trace"),
    "tables cut off": (cut, "not a readable trace"),
    "not JSON": (text("{"), "not a readable trace"),
    "not text": (lambda path: Path(f"{path}.json").write_bytes(b"\xff\xfe"), "not a readable trace"),
    "a list": (text("[]"), "not a readable trace"),
    "no keys": (text("{}"), "not a readable trace"),
    "an address too short": (edit(points=[["skip"]]), "not a readable trace"),
    "an address too many": (edit(points=[["skip", []], ["a", []], ["b", []], ["c", []]]), "not a readable trace"),
    "a point whose name is no text": (edit(covers=["a", 3]), "a name of a point is no text"),
    "no number of items": (edit(items="three"), "corrupt|not a readable trace"),
    "another number of items": (edit(items=4), "corrupt"),
    "another decision": (table("0.value", torch.tensor([False, False, True])), "corrupt"),
    "another type": (table("0.value", torch.tensor([1, 0, 1])), "corrupt"),
    "a single number": (table("0.value", torch.tensor(True)), "corrupt|not a readable trace"),
    "a table gone": (table("1.reached", None), "not a readable trace"),
    "a newer schema": (edit(schema=SCHEMA_VERSION + 1, points="?"), f"schema {SCHEMA_VERSION + 1}"),
    "another stream": (edit(stream_hash="stream-b"), "stream stream-b, not on stream-a"),
    "no stream": (edit(stream_hash=""), r"stream \(none\), not on stream-a"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_trace_is_refused_in_one_sentence(tmp_path: Path, what: str) -> None:
    spoil, says = SPOILT[what]
    small().save(tmp_path / "t")
    spoil(tmp_path / "t")
    with pytest.raises(TraceError, match=says) as error:
        Trace.load(tmp_path / "t", "stream-a")
    assert str(tmp_path / "t") in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(suffix=st.sampled_from(["json", "safetensors"]), place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_a_flipped_byte_is_noticed_or_changes_nothing(suffix: str, place: float, byte: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        small().save(path)
        content = bytearray(Path(f"{path}.{suffix}").read_bytes())
        content[int(place * len(content))] = byte
        Path(f"{path}.{suffix}").write_bytes(content)
        try:
            back = Trace.load(path, "stream-a")
        except TraceError:
            return
        assert back == small()
