"""`dynbench search`: the table and the JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from dynbench.models.dmasking import Space, macs
from tests.cli import call

OPTIONS = [[4, 8], [8, 16]]
SPACE = Space((16, 32), ((4, 8), (4, 8), (8, 16)), OPTIONS, 1)
QUICK = ("--samples", "10", "--rounds", "1", "--batch", "2")


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """A workload with a card that lists trained networks; the weights themselves are not needed."""
    (tmp_path / "tiny.toml").write_text(
        'schema = 1\nname = "tiny"\ntitle = "tiny"\nmodel = "dynbench.models.dmasking:dmasking"\n'
        'weights = "tiny.safetensors"\n[inputs]\nname = "digits"\n'
        '[train]\nrecipe = "dynbench.training.dmasking:train"\n[train.options.net]\nepochs = 1\nitems = 64\n'
    )
    draw = random.Random(0)
    nets = [SPACE.random(draw) for _ in range(12)]
    card = {
        "space": {
            "resolutions": SPACE.resolutions,
            "channels": SPACE.channels,
            "widths": OPTIONS,
            "blocks": 1,
            "num_classes": 10,
            "networks": SPACE.networks,
        },
        "trained_nets": [{"picked": SPACE.picked(a), "accuracy": 0.5 + macs(SPACE, a) / 1e6} for a in nets],
    }
    (tmp_path / "tiny.json").write_text(json.dumps(card))
    return tmp_path / "tiny.toml"


def test_the_json_has_what_was_picked_predicted_and_measured(workload: Path) -> None:
    result = call("search", workload, "--max-latency-ms", "100000", "--json", *QUICK)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    choice = found["choice"]
    assert SPACE.picked(SPACE.choose(choice["picked"])) == choice["picked"]
    assert (
        choice["macs"] == macs(SPACE, SPACE.choose(choice["picked"])) > 0.6 * found["most"]
    )  # larger is more accurate here, and the budget is wide
    assert choice["measured_ms"] > 0 and choice["predicted_ms"] > 0 and choice["largest_ms"] > 0
    assert 0 <= found["accuracy"] <= 1 and found["networks"] == SPACE.networks == 64
    assert choice["latency"]["networks"] == 10 and choice["accuracy"]["networks"] == 12


def test_the_table_says_the_same_and_how_far_to_trust_it(workload: Path) -> None:
    text = call("search", workload, "--max-latency-ms", "100000", "--no-train", *QUICK).stdout
    assert "Picked of 64 networks, for at most 100000 ms for a batch of 2" in text
    assert "resolution = " in text and "widths = [" in text and "not trained" in text
    assert "by cross-validation: latency rank correlation" in text and "without pre-training" in text


def test_what_is_printed_builds_the_network(workload: Path) -> None:
    text = call("search", workload, "--max-latency-ms", "100000", "--no-train", *QUICK).stdout
    settings = [line.replace(" = ", "=") for line in text.splitlines() if line.startswith(("reso", "chan", "widt"))]
    assert len(settings) == 3
    result = call("cost", "dmasking_plain", "--set", "blocks=1", *(p for s in settings for p in ("--set", s)), "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["macs"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("tiny", "--max-latency-ms", "1e-6"), "no network is expected to be as fast; those measured take"),
        (("ram_digits60", "--max-latency-ms", "5"), "a card has a search space and trained networks"),
        (("dmaskin_digits", "--max-latency-ms", "5"), "did you mean"),
        (("tiny",), "Missing option '--max-latency-ms'"),
    ],
)
def test_an_error_is_one_sentence(workload: Path, args: tuple[str, ...], message: str) -> None:
    result = call("search", *(workload if a == "tiny" else a for a in args), *QUICK)
    assert result.exit_code == 2
    assert message in result.stderr and len(result.stderr.strip().splitlines()) == 1
