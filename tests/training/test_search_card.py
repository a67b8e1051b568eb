"""The model card that a search reads: what it needs of it, and one sentence about a card that is otherwise."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from dynbench.errors import UserError
from dynbench.training.predictor import _known
from tests.faults import mutations

WORKLOAD = {"name": "own", "weights": "own.safetensors"}
CARD: dict[str, Any] = {
    "model": "own",
    "space": {
        "resolutions": [24, 32],
        "channels": [[8], [8, 16]],
        "widths": [[16, 24]],
        "blocks": 1,
        "num_classes": 10,
        "networks": 8,
    },
    "trained_nets": [{"picked": [1, 0, 1, 0], "seed": 0, "accuracy": 0.5}],
}


def refused(folder: Path, content: bytes | str) -> str:
    (folder / "own.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        _known(WORKLOAD, folder)
    assert str(folder / "own.json") in str(caught.value)
    return str(caught.value)


def test_a_card_is_read(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps(CARD))
    space, trained = _known(WORKLOAD, tmp_path)
    assert space.networks == 8 and trained == [{"picked": [1, 0, 1, 0], "accuracy": 0.5}]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("space",), None, "space: "),
        (("space", "blocks"), 10**30, "space.blocks: input should be less than"),
        (("space", "channels"), [[8]], "it needs at least one stage"),
        (("space", "resolutions"), [31], "resolution 31"),
        (("trained_nets",), 3, "trained_nets: "),
        (("trained_nets", 0, "picked"), [1, 0, 2, 0], "is no network of its space"),
        (("trained_nets", 0, "picked"), [1, 0], "is no network of its space"),
        (("trained_nets", 0, "accuracy"), "high", "trained_nets.0.accuracy: "),
    ],
)
def test_a_value_that_is_none_is_named(path: tuple[Any, ...], value: object, said: str, tmp_path: Path) -> None:
    card = copy.deepcopy(CARD)
    owner = card
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    assert said in refused(tmp_path, json.dumps(card))


@pytest.mark.parametrize("content", ["", "[]", "3", "{", "[" * 5000, b"\xff\xfe", '{"space": NaN}'])
def test_what_is_no_card_is_refused(content: str | bytes, tmp_path: Path) -> None:
    refused(tmp_path, content)


def test_no_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workload 'own' has no model card .*own.json; a card has a search space"):
        _known(WORKLOAD, tmp_path)


def test_a_damaged_card_is_read_or_refused(tmp_path: Path) -> None:
    file, whole = tmp_path / "own.json", json.dumps(CARD).encode()
    read = 0
    for number in range(300):
        file.write_bytes(whole)
        mutations.damage(random.Random(number), mutations.JSON, file)
        try:
            _known(WORKLOAD, tmp_path)
            read += 1
        except UserError:
            pass
        mutations.remove(file)
    assert 0 < read < 300


def test_a_workload_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workload 'own' has no weights, and so no model card; a card has"):
        _known({"name": "own"}, tmp_path)
