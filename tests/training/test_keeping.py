"""What is kept of an unfinished training: files that are exact, and that say so when they are damaged or another's."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynbench.errors import UserError
from dynbench.training.checkpoint import Checkpoint, write_checkpoint
from dynbench.training.keeping import Batches, Record

CPU = torch.device("cpu")


class Holds:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    strided = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    one = torch.randn(3, dtype=torch.float64)
    state = {
        0: {"a": strided, "step": torch.tensor(3.0), "none": None},
        "list": [1, 2.5, "text", True, (one.bfloat16(), one > 0)],
        "odd": [0.1 + 0.2, float("inf"), 10**30, {}, [], ()],
        "empty": torch.empty(0, 4),
        "tied": one,
        "again": one,
    }
    write_checkpoint(tmp_path / "x", {"done": 3}, {"part": Holds(state)})
    drawn = [torch.rand(3), np.random.rand(), random.random()]
    checkpoint, back = Checkpoint(tmp_path / "x"), Holds(None)
    checkpoint.restore({"part": back}, CPU)
    assert checkpoint.facts == {"done": 3}
    assert torch.equal(drawn[0], torch.rand(3)) and drawn[1:] == [np.random.rand(), random.random()]
    got = back.state
    assert got.keys() == state.keys() and torch.equal(got[0]["a"], strided)
    assert got[0]["a"].stride() == strided.stride() and float(got[0]["step"]) == 3
    assert got["odd"] == state["odd"] and got["list"][:4] == state["list"][:4] and got["empty"].shape == (0, 4)
    assert torch.equal(got["list"][4][0], one.bfloat16()) and got["list"][4][1].dtype == torch.bool
    assert torch.equal(got["tied"], one) and torch.equal(got["again"], one)


def test_gradients_that_nothing_clears_are_kept(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    net.bias.grad = None
    write_checkpoint(tmp_path / "x", {}, {"net": net})
    other = nn.Linear(2, 2)
    Checkpoint(tmp_path / "x").restore({"net": other}, CPU)
    assert net.weight.grad is not None and other.weight.grad is not None and other.bias.grad is None
    assert torch.equal(other.weight.grad, net.weight.grad) and torch.equal(other.weight, net.weight)


def test_what_is_not_plain_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"part/f is function, neither a tensor nor plain data"):
        write_checkpoint(tmp_path / "x", {}, {"part": Holds({"f": lambda: None})})
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_with_any_bit_changed_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "x.checkpoint"
    write_checkpoint(file, {"done": 1}, {"part": Holds({"w": torch.arange(50.0)})})
    good = file.read_bytes()
    damaged = [good[: len(good) // 2], b"", b"\x80\x02}q\x00.", good + b"0", good[:8] + b"[" * 5000]
    for at in range(0, len(good), max(len(good) // 97, 1)):
        damaged.append(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read: it is damaged or of another version; --fresh begins anew"):
            Checkpoint(file)
    file.write_bytes(good)
    with pytest.raises(UserError, match="of another network or optimizer"):
        Checkpoint(file).restore({"part": nn.Linear(2, 2)}, CPU)
    with pytest.raises(UserError, match="of another network or optimizer"):
        Checkpoint(file).restore({"other": Holds(None)}, CPU)


def test_a_record_goes_on_with_the_same_request_only(tmp_path: Path) -> None:
    asked = {"recipe": "a:b", "train": {"options": {"lr": 0.1, "long": "x" * 200}}}
    first = Record(tmp_path / "unfinished", asked)
    first.finish("net")
    assert not first.goes_on and first.source is None
    assert Record(tmp_path / "unfinished", asked, source="changed").source_changed
    again = Record(tmp_path / "unfinished", asked)
    assert again.goes_on and again.finished == ["net"] and again.source_changed
    for other, says in (
        ({**asked, "recipe": "a:c"}, 'with another recipe: "a:b" then, "a:c" now; --fresh begins anew'),
        ({**asked, "train": {"options": {}}}, "another train.options.lr: 0.1 then, none now"),
        ({**asked, "more": 1}, "another more: none then, 1 now"),
    ):
        with pytest.raises(UserError, match=says):
            Record(tmp_path / "unfinished", other)
    assert not Record(tmp_path / "unfinished", {"recipe": "a:c"}, fresh=True).goes_on
    nothing_kept = Record(tmp_path / "unfinished", {"recipe": "a:d"})
    assert not nothing_kept.goes_on
    nothing_kept.close()
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"asked": 1, "finished": []}', "[" * 100_000, "\udcff"])
def test_a_damaged_record_is_a_sentence(tmp_path: Path, content: str) -> None:
    Record(tmp_path / "unfinished", {})
    (tmp_path / "unfinished" / "training.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"training\.json is damaged; --fresh begins anew"):
        Record(tmp_path / "unfinished", {})


def test_only_files_of_a_training_are_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    mine = tmp_path / "unfinished" / "notes.txt"
    record = Record(tmp_path / "unfinished", {})
    mine.write_text("mine")
    (tmp_path / "unfinished" / "net.checkpoint").write_text("")
    record.remove()
    assert [p.name for p in mine.parent.iterdir()] == ["notes.txt"]
    elsewhere = tmp_path / "elsewhere"
    Record(elsewhere, {}).finish("net")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unfinished").symlink_to(elsewhere)
    for fresh in (False, True):
        with pytest.raises(UserError, match="symbolic link"):
            Record(tmp_path / "out" / "unfinished", {}, fresh)
    assert [p.name for p in elsewhere.iterdir()] == ["training.json"]


def test_batches_are_a_pass_over_all_rows_in_the_order_of_a_permutation() -> None:
    torch.manual_seed(0)
    want = [torch.randperm(7).split(3) for _ in range(2)]
    torch.manual_seed(0)
    batches = Batches(7, 3)
    got = [batches(step) for step in range(2)]
    inside = json.loads(json.dumps(batches.state_dict()["order"].tolist()))
    after = [batches(step) for step in range(2, 6)]
    assert all(torch.equal(a, b) for a, b in zip([*got, *after], [*want[0], *want[1]], strict=True))
    other = Batches(7, 3)
    other.load_state_dict({"order": torch.tensor(inside)})
    assert torch.equal(other(2), want[0][2])
