"""Whatever a user's model returns or raises: one sentence, never a traceback, and the sentence names what is wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dynbench.cli import main
from dynbench.errors import DynbenchError, UserError
from dynbench.experiment.serve import Server
from dynbench.experiment.spec import Options
from tests.experiment.malformed import net
from tests.experiment.malformed.net import FAULTS, NETWORKS, places

NET = Path(net.__file__)
COMMANDS = ("verify", *["run"] * 7, "cost", *["run"] * 7)
CASES = random.Random(0).sample([(place, fault) for place in places() for fault in FAULTS], 500)
GROUPS = [CASES[i : i + 50] for i in range(0, 500, 50)]


def workload(folder: Path, args: dict[str, str]) -> Path:
    file = folder / "w.toml"
    table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in args.items())
    file.write_text(
        f"""
schema = 1
name = "malformed"
title = "A model that is wrong"
model = "{NET}:make"
model_args = {{ {table} }}
inputs = {{ name = "{NET}:items" }}
run = {{ batch_sizes = [4], decisions = ["learned"], accuracy_items = 0 }}
train = {{ recipe = "{NET}:recipe" }}
""",
        encoding="utf-8",
    )
    return file


def sentence(folder: Path, command: str, args: dict[str, str]) -> str | None:
    """What the command says is wrong; None: nothing is."""
    file = workload(folder, args)
    if command == "run":  # what the measuring process does, in this one
        options = Options(threads=1, deployed=False).model_dump(mode="json")
        try:
            Server(lambda *_, **__: None, lambda: False).serve(
                {"do": "prepare", "file": str(file), "run": None, "options": options}
            )
        except UserError as e:
            return str(e)
        return None
    given: list[Any] = [command, file]
    if command == "cost":
        given = [
            "cost",
            f"{NET}:make",
            *(part for k, v in args.items() for part in ("--set", f"{k}={v}")),
            "--input",
            8,
        ]
    if command in ("compile", "train"):
        given += ["--out", folder / "out"]
    result = CliRunner().invoke(main, [str(part) for part in given])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        said = result.stderr.splitlines()[-1]  # before it, warnings that torch itself gives
        assert said.startswith("Error: ")
        return said.removeprefix("Error: ")
    assert result.exit_code in (0, 1)
    return None


@pytest.mark.parametrize("cases", GROUPS, ids=range(len(GROUPS)))
def test_no_malformed_model_ends_in_a_traceback(cases: list[tuple[str, str]], tmp_path: Path) -> None:
    for i, (place, fault) in enumerate(cases):
        command = COMMANDS[i % len(COMMANDS)]
        try:
            said = sentence(tmp_path, command, {"place": place, "fault": fault})
        except DynbenchError as e:
            pytest.fail(f"{command}, {place}, {fault}: no error of the user's: {e}")
        except Exception as e:  # noqa: BLE001  (that is what must not be)
            pytest.fail(f"{command}, {place}, {fault}: {type(e).__name__}: {e}")
        if said is not None:
            assert "\n" not in said and len(said) < 600, (command, place, fault)


@pytest.mark.parametrize("network", [network.__name__ for network in NETWORKS])
def test_a_network_in_which_all_is_right_is_not_accused(network: str, tmp_path: Path) -> None:
    assert sentence(tmp_path, "run", {"network": network}) is None


EXCEPTIONS = [name for name, fault in FAULTS.items() if "Error" in name or name == "StopIteration"]


@pytest.mark.parametrize(
    "place", ["gate", "body", "router", "expert", "policy", "head", "halt", "step", "parse", "rule"]
)
def test_an_error_of_a_part_s_own_code_is_said_with_its_point_type_and_text(place: str, tmp_path: Path) -> None:
    name = {"gate": "block", "body": "block", "router": "moe", "expert": "moe", "policy": "exit", "head": "exit"}.get(
        place, {"halt": "loop", "step": "loop", "parse": "program", "rule": "look"}.get(place, "")
    )
    for fault in EXCEPTIONS:
        said = sentence(tmp_path, "verify", {"place": place, "fault": fault})
        assert said is not None and f"'{name}'" in said and f" raised {fault}" in said, said
        assert "net.py line" in said and "second line" not in said


WANTED = {
    ("bare gate", "one dimension more"): "Skip 'bare': the gate gave scores [12, 1]; wanted [12]",
    ("gate", "two columns"): "Skip 'block': the gate gave scores [12, 2]; wanted [12]",
    ("gate", "an item less"): "Skip 'block': the gate gave scores [11]; wanted [12]",
    ("gate", "squeezed"): "Skip 'block': the gate gave scores []; wanted [1]",
    ("gate", "None"): "Skip 'block': the gate gave None; wanted (scores [n], carry)",
    ("gate", "meta"): "Skip 'block': the gate gave scores on meta; wanted cpu, where its items are",
    ("gate", "nan"): "Skip 'block': the gate gave scores that are NaN, for 12 of 12 items; wanted numbers",
    ("body", "one column"): "Skip 'block': the body gave [12, 1]; wanted [12, 8], as otherwise gave",
    (
        "bare body",
        "one column",
    ): "Skip 'bare': the body gave [12, 1]; wanted [12, 8], the shape of an item that skips it",
    ("bare body", "float64"): "Skip 'bare': the body gave [12, 8] float64; wanted [12, 8] float32",
    ("router", "one column"): "Route 'moe': the router gave scores [12, 1]; wanted [12, 3]",
    (
        "expert",
        "twice the items",
    ): "Route 'moe': expert 1 gave [24, 8]; wanted [12, ...]: the first dimension is the item",
    ("policy", "no dimension"): "Exits 'exit': the policy gave [] float32; wanted [12] bool",
    ("policy", "yes"): "Exits 'exit': the policy gave a Python bool; wanted [12] bool",
    ("halt", "long"): "Loop 'loop': halt gave [12] int64; wanted [12] bool",
    ("head", "one column"): "Exits 'exit': step 1 answered [12, 1]; wanted [12, 8], as step 0 did",
    ("choose", "negative"): "Weights 'weights': choose gave code -7; wanted 0 to 2",
    ("choose", "large"): "Weights 'weights': choose gave code 1000; wanted 0 to 2",
    ("parse", "float64"): "Program 'program': parse gave layouts [12, 2, 3] float64; wanted [12, 2, 3] int64",
    ("answer", "no dimension"): "the model answers 12 items by []; wanted tensors [12, ...]",
}


@pytest.mark.parametrize(("place", "fault"), WANTED, ids=" ".join)
@pytest.mark.parametrize("command", ["verify", "run"])
def test_the_sentence_says_what_came_and_what_was_wanted(command: str, place: str, fault: str, tmp_path: Path) -> None:
    said = sentence(tmp_path, command, {"place": place, "fault": fault})
    assert said is not None and said.startswith(WANTED[place, fault])


@pytest.mark.parametrize("place", ["gate", "router", "policy"])
@pytest.mark.parametrize("command", ["compile", "train", "cost"])
def test_other_commands_end_with_a_sentence_too(command: str, place: str, tmp_path: Path) -> None:
    said = sentence(tmp_path, command, {"place": place, "fault": "product"})
    if command != "cost" and not (command == "train" and place != "router"):
        assert said is not None and "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)" in said
