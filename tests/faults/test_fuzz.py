"""Damaged files through the real commands, in this process: a sentence and an exit code, never a traceback.

The number of inputs of each kind is `DYNBENCH_FUZZ_INPUTS`; `make fuzz` tries many.
"""

from __future__ import annotations

import os
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

import dynbench.experiment.run
from dynbench.cli import main
from dynbench.deploy.bundle import MANIFEST
from dynbench.devices.profiles import load_profile
from dynbench.errors import UserError
from tests.faults import mutations
from tests.faults.here import Here
from tests.faults.networks import make
from tests.faults.test_runs import workload

INPUTS = int(os.environ.get("DYNBENCH_FUZZ_INPUTS", "12"))
SEED = int(os.environ.get("DYNBENCH_FUZZ_SEED", "0"))
QUICK = ("--time-limit", "0.02", "--precision", "90", "--batch", "8", "--strategy", "masking", "--as-written")


def invoke(*args: object) -> None:
    """Calls a command; an exception is a fault, and so is an exit code that says nothing."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError("".join(traceback.format_exception(result.exception)))
    assert result.exit_code in (0, 1, 2, 3), result.output
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert len(result.output.strip().splitlines()[-1]) < 2000, result.output[:2000]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    launcher = Here()
    monkeypatch.setattr(dynbench.experiment.run, "LAUNCHERS", {"local": launcher})
    return launcher


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid file of every kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    file = workload(folder)
    with file.open("a") as text:
        text.write('[[baselines]]\nname = "plain"\nprimary = true\nmodel = "net.py:plain"\n')
    save_file(make().state_dict(), folder / "net.safetensors")
    (folder / "net.json").write_text('{"model": "net", "epochs": 3, "test_accuracy": 0.5}\n')
    weighted = file.read_text().replace("title =", 'weights = "net.safetensors"\ntitle =')
    (folder / "weighted.toml").write_text(weighted)
    (folder / "line.toml").write_text('round_trip_ms = 20\njitter_ms = 2.5\nup_mbit_s = 8\ntitle = "A line"\n')
    profile = 'match = "Some.*"\nname = "Some"\nsource = "its data sheet"\n[ceilings]\nmemory_bytes_per_s = 1e12\n'
    (folder / "profile.toml").write_text(profile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynbench.experiment.run, "LAUNCHERS", {"local": Here()})
        invoke("run", file, *QUICK, "--decisions", "learned", "--out", folder / "run")
        invoke("history", "add", folder / "run", "--db", folder / "history.db")
        invoke("compile", file, "--out", folder / "bundle")
    return folder


def fuzz(
    kind: str, source: Path, target: Path, how: tuple[mutations.Mutation, ...], act: Callable[[], None], inputs: int
) -> None:
    """Damages a file again and again and lets a command read it; says which damage did it."""
    content = source.read_bytes()
    for number in range(inputs):
        r = random.Random(f"{kind} {SEED} {number}")
        damage = r.choice(how)
        target.write_bytes(damage(r, content))
        try:
            act()
        except AssertionError as e:
            raise AssertionError(f"{kind}, seed {SEED}, input {number}, {damage.__name__}: {str(e)[-3000:]}") from None
    target.write_bytes(content)


def copied(ready: Path, folder: Path) -> Path:
    shutil.copytree(ready, folder / "copy")
    return folder / "copy"


@pytest.mark.parametrize("kind", ["workload", "weights", "card"])
def test_what_a_workload_is_made_of(kind: str, ready: Path, tmp_path: Path, here: Here) -> None:
    mine = copied(ready, tmp_path)
    name, how = {
        "workload": ("net.toml", mutations.TOML),
        "weights": ("net.safetensors", mutations.BYTES),
        "card": ("net.json", mutations.JSON),
    }[kind]
    spec = mine / ("net.toml" if kind == "workload" else "weighted.toml")
    fuzz(kind, ready / name, mine / name, how, lambda: invoke("run", spec, *QUICK, "--dry-run"), INPUTS)
    assert here.faults == []


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_trace(suffix: str, ready: Path, tmp_path: Path, here: Here) -> None:
    mine = copied(ready, tmp_path)
    (trace,) = (mine / "run" / "traces").glob(f"*.{suffix}")
    how = mutations.JSON if suffix == "json" else mutations.BYTES
    replay = ("--decisions", f"replay:{trace.with_suffix('')}")

    def act() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        invoke("run", mine / "net.toml", *QUICK, *replay, "--out", tmp_path / "out")

    fuzz(f"trace.{suffix}", trace, trace, how, act, INPUTS)
    assert here.faults == []


@pytest.mark.parametrize("name", ["manifest.json", "cells.jsonl", "samples"])
def test_a_run_directory(name: str, ready: Path, tmp_path: Path) -> None:
    mine = copied(ready, tmp_path)
    file = next((mine / "run" / "samples").iterdir()) if name == "samples" else mine / "run" / name
    how = mutations.BYTES if name == "samples" else mutations.JSON

    def act() -> None:
        r = random.Random(file.read_bytes())
        command = r.choice(["export", "export", "compare", "report"])
        if command == "compare":
            invoke("compare", mine / "run", ready / "run")
        elif command == "report":
            invoke("report", mine / "run", "--format", "md", "--out", tmp_path / "out")
        else:
            invoke("export", mine / "run", "--out", tmp_path / "out")

    fuzz(name, file, file, how, act, INPUTS)


def test_a_history(ready: Path, tmp_path: Path) -> None:
    mine = copied(ready, tmp_path)
    database = mine / "history.db"

    def act() -> None:
        invoke("history", "list", "--db", database)
        invoke("history", "show", "net", "--db", database)

    fuzz("history", database, database, mutations.BYTES, act, INPUTS)


@pytest.mark.parametrize("name", [MANIFEST, "dynamic.onnx", "inputs"])
def test_a_bundle(name: str, ready: Path, tmp_path: Path) -> None:
    mine = copied(ready, tmp_path)
    files = sorted(f for f in (mine / "bundle").iterdir() if f.name.startswith(name))
    how = mutations.JSON if name == MANIFEST else mutations.BYTES
    fuzz(f"bundle {name}", files[0], files[0], how, lambda: invoke("compile", "--check", mine / "bundle"), INPUTS)


def test_a_network_profile(ready: Path, tmp_path: Path) -> None:
    mine = copied(ready, tmp_path)
    arguments = ("partition", mine / "net.toml", "--network", mine / "line.toml", "--rounds", 1)
    fuzz("network", mine / "line.toml", mine / "line.toml", mutations.TOML, lambda: invoke(*arguments), INPUTS)


def test_a_device_profile(ready: Path, tmp_path: Path) -> None:
    file = copied(ready, tmp_path) / "profile.toml"

    def act() -> None:
        try:
            load_profile(file)
        except UserError as e:
            assert "\n" not in str(e)

    fuzz("device profile", file, file, mutations.TOML, act, 20 * INPUTS)


def test_the_mutations_change_what_they_are_given() -> None:
    content = b'{"a": 1.5, "b": [1, 2]}\n'
    for damage in {*mutations.JSON, *mutations.TOML}:
        changed = [damage(random.Random(n), content) for n in range(20)]
        assert any(c != content for c in changed), damage.__name__
