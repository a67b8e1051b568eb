"""Damaged files of every kind through the real commands, in one process; `make fuzz` tries many.

    python -m tests.faults.fuzz [--seconds 120] [--inputs N] [--seed 0] [--kind NAME]

An input is named by kind, seed and number, and is the same whenever it is tried again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import dynbench.experiment.run
from dynbench.cli import main
from tests.faults import mutations
from tests.faults.here import Here
from tests.faults.mutations import Mutation
from tests.faults.networks import make
from tests.faults.test_runs import workload
from tests.gate.test_baseline_file import TABLE

QUICK = ("--time-limit", "0.02", "--precision", "90", "--batch", "8", "--strategy", "masking", "--as-written")
HANGS_AFTER_S = 30.0
LONGEST_SENTENCE = 2000
PROFILE = {
    "memory_bytes_per_s": "1e12",
    "flops_per_s": "{ float32 = 1e13 }",
}
FIGURE = '{ value = 2e9, low = 1e9, high = 3e9, unit = "bytes/s", at = "1 MiB" }'


class Hang(BaseException):
    """An input took longer than `HANGS_AFTER_S`; not caught by what catches every exception."""


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        name: of the kind.
        files: one of these, relative to the folder with a valid file of every kind, is damaged; may be a pattern.
        how: the damage that is done to its content.
        command: the command lines of which one reads it, given that folder.
        read: what the last line says when the file itself was read and something later is refused.
        share: of the inputs, relative to the other kinds.
    """

    name: str
    files: tuple[str, ...]
    how: tuple[Mutation, ...]
    command: Callable[[Path], list[tuple[object, ...]]]
    read: str = "\0"
    share: int = 2


def _dry(name: str) -> Callable[[Path], list[tuple[object, ...]]]:
    return lambda here: [("run", here / name, *QUICK, "--dry-run")]


def _replay(here: Path) -> list[tuple[object, ...]]:
    (trace,) = (here / "trace").glob("*.json.whole")
    stem = str(trace).removesuffix(".json.whole")
    return [("run", here / "net.toml", *QUICK, "--decisions", f"replay:{stem}", "--out", here / "out")]


def _read_run(here: Path) -> list[tuple[object, ...]]:
    run, whole = here / "run", here / "whole"
    return [
        ("export", run, "--out", here / "out"),
        ("compare", run, whole),
        ("history", "add", run, "--db", here / "out" / "history.db"),
        ("report", run, "--format", "md", "--out", here / "out"),
    ]


def _read_history(here: Path) -> list[tuple[object, ...]]:
    database = here / "history.db"
    return [
        ("history", "list", "--db", database),
        ("history", "show", "net", "--db", database),
        ("history", "checks", "--db", database),
        ("history", "add", here / "whole", "--db", database),
    ]


def _whatif(here: Path) -> list[tuple[object, ...]]:
    return [("whatif", here / "whole", "--device", here / "profile.toml", "--calibration", here / "here.toml")]


KINDS = (
    Kind("workload", ("net.toml",), mutations.TOML, _dry("net.toml"), share=3),
    Kind("weights", ("net.safetensors",), mutations.BYTES, _dry("weighted.toml")),
    Kind("card", ("net.json",), mutations.JSON, _dry("weighted.toml")),
    Kind(
        "checkpoint",
        ("w.pt",),
        mutations.BYTES,
        lambda here: [("convert", here / "w.pt", "--out", here / "out")],
        share=1,
    ),
    Kind("trace", ("trace/*.json",), mutations.JSON, _replay, share=1),
    Kind("trace tensors", ("trace/*.safetensors",), mutations.BYTES, _replay, share=1),
    Kind("manifest", ("run/manifest.json",), mutations.JSON, _read_run),
    Kind("cells", ("run/cells.jsonl",), mutations.JSON, _read_run),
    Kind("samples", ("run/samples/*.parquet",), mutations.BYTES, _read_run, share=1),
    Kind("scaling", ("run/scaling/*", "run/scaling*.json*"), mutations.JSON, lambda here: [("whatif", here / "run")]),
    Kind("history", ("history.db",), mutations.BYTES, _read_history),
    Kind("bundle", ("bundle/*",), mutations.JSON, lambda here: [("compile", "--check", here / "bundle")]),
    Kind(
        "network",
        ("line.toml",),
        mutations.TOML,
        lambda here: [("partition", here / "net.toml", "--network", here / "line.toml", "--rounds", 1)],
        share=1,
    ),
    Kind("hardware", ("profile.toml",), mutations.TOML, _whatif, "has no figure", share=3),
    Kind(
        "baseline",
        ("baseline.json",),
        mutations.JSON,
        lambda here: [("check", here / "net.toml", "--baseline", here / "baseline.json")],
        "the baseline is of workload",
        share=5,
    ),
)


@dataclass
class Tally:
    """What became of the inputs of a kind.

    Attributes:
        refused: in a sentence, with exit code 2.
        read: as if nothing was wrong.
        faults: tracebacks, and refusals that are no sentence.
        hangs: no end in `HANGS_AFTER_S`.
        found: the names of the faults and hangs, with what happened.
    """

    refused: int = 0
    read: int = 0
    faults: int = 0
    hangs: int = 0
    found: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return self.refused + self.read + self.faults + self.hangs


def prepare(folder: Path) -> None:
    """Makes a valid file of every kind in a folder."""
    file = workload(folder)
    with file.open("a") as text:
        text.write('[[baselines]]\nname = "plain"\nprimary = true\nmodel = "net.py:plain"\n')
    save_file(make().state_dict(), folder / "net.safetensors")
    torch.save({"epoch": 3, "model": make().state_dict()}, folder / "w.pt")
    (folder / "net.json").write_text('{"model": "net", "epochs": 3, "test_accuracy": 0.5}\n')
    (folder / "weighted.toml").write_text(file.read_text().replace("title =", 'weights = "net.safetensors"\ntitle ='))
    (folder / "line.toml").write_text('round_trip_ms = 20\njitter_ms = 2.5\nup_mbit_s = 8\ntitle = "A line"\n')
    profile = 'match = "Some.*"\nname = "Some"\nsource = "its data sheet"\n[ceilings]\n'
    profile += "".join(f"{name} = {value}\n" for name, value in PROFILE.items())
    profile += '[calibration]\ndevice = "cpu"\nthreads = 1\ndtype = "float32"\ntorch = "2.11.0"\ndate = "2026-01-01"\n'
    profile += f"figures = {{ copy = {FIGURE} }}\n"
    (folder / "profile.toml").write_text(profile)
    (folder / "here.toml").write_text(profile.replace("Some.*", ".*"))
    (folder / "baseline.json").write_text(json.dumps({**TABLE, "workload": "another"}, indent=1))
    with in_this_process():
        call("run", file, *QUICK, "--decisions", "learned", "--scaling", "--out", folder / "whole")
        call("history", "add", folder / "whole", "--db", folder / "history.db")
        call("compile", file, "--out", folder / "bundle")
    shutil.copytree(folder / "whole", folder / "run")
    shutil.copytree(folder / "whole" / "traces", folder / "trace")
    (trace,) = (folder / "trace").glob("*.json")
    shutil.copy(trace, f"{trace}.whole")


@contextmanager
def in_this_process() -> Iterator[Here]:
    """Meanwhile `dynbench run` starts no process."""
    launcher = Here()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynbench.experiment.run, "LAUNCHERS", {"local": launcher})
        yield launcher


def call(*args: object) -> tuple[int, str]:
    """Calls a command: exit code and output.

    Raises:
        AssertionError: it ended with an exception, or with a code that says nothing.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError("".join(traceback.format_exception(result.exception)))
    assert result.exit_code in (0, 1, 2, 3), result.output
    assert "Traceback" not in result.output, result.output
    assert result.output.isprintable() or not set(result.output) & set("\x00\x07\x08\x1b\x7f"), repr(result.output)
    said = [str(w.message) for w in warned if w.category in (FutureWarning, SyntaxWarning, UserWarning)]
    assert not [text for text in said if "dynbench" in text or "nested set" in text], said
    if result.exit_code == 2:
        last = result.output.strip().splitlines()[-1]
        assert last.startswith("Error: ") and 10 < len(last) < LONGEST_SENTENCE, result.output[-LONGEST_SENTENCE:]
    return result.exit_code, result.output


def try_kind(kind: Kind, folder: Path, *, seed: int, numbers: range, launcher: Here, until: float | None) -> Tally:
    """Damages a file of a kind again and again and lets a command read it.

    Args:
        kind: of files.
        folder: what `prepare` made; the file is whole again afterwards.
        seed: of all damage.
        numbers: of the inputs.
        launcher: of `in_this_process`.
        until: no input begins after this, in seconds of the monotonic clock; None: all of them are tried.
    """
    tally = Tally()
    files = sorted({file for pattern in kind.files for file in folder.glob(pattern) if file.is_file()})
    if not files:
        raise LookupError(f"there is no file of kind {kind.name!r} to begin with: {kind.files}")
    for number in numbers:
        if until is not None and time.monotonic() > until:
            break
        r = random.Random(f"{kind.name} {seed} {number}")
        file = r.choice(files)
        content = file.read_bytes()
        what = mutations.damage(r, kind.how, file)
        command = r.choice(kind.command(folder))
        try:
            with limited():
                code, output = call(*command)
            assert not launcher.faults, launcher.faults.pop()
        except (AssertionError, Hang) as e:
            tally.hangs += isinstance(e, Hang)
            tally.faults += isinstance(e, AssertionError)
            text = "no end" if isinstance(e, Hang) else str(e)[-3000:]
            tally.found.append(f"{kind.name}, seed {seed}, input {number}, {what} of {file.name}: {text}")
        else:
            refused = code == 2 and kind.read not in output
            tally.refused += refused
            tally.read += not refused
        finally:
            launcher.faults.clear()
            mutations.remove(file)
            file.write_bytes(content)
            mutations.remove(folder / "out")
    return tally


@contextmanager
def limited() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER_S)
    faulthandler.dump_traceback_later(HANGS_AFTER_S + 60, exit=True)  # stuck where no signal is looked at
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def table(tallies: dict[str, Tally]) -> str:
    """The figures, a line for each kind and one for all."""
    total = Counter[str]()
    lines = [f"{'kind':<15}{'inputs':>8}{'refused':>9}{'read':>7}{'faults':>8}{'hangs':>7}"]
    for name, tally in tallies.items():
        row = {k: getattr(tally, k) for k in ("inputs", "refused", "read", "faults", "hangs")}
        total.update(row)
        lines.append(_line(name, row))
    return "\n".join([*lines, _line("all", total)])


def _line(name: str, row: dict[str, int] | Counter[str]) -> str:
    return f"{name:<15}{row['inputs']:>8}{row['refused']:>9}{row['read']:>7}{row['faults']:>8}{row['hangs']:>7}"


def fuzz(folder: Path, kinds: list[Kind], *, seed: int, inputs: int | None, seconds: float) -> dict[str, Tally]:
    """Tries inputs of these kinds in turn, until there were so many or the time is over."""
    tallies = {kind.name: Tally() for kind in kinds}
    until, begin = time.monotonic() + seconds, Counter[str]()
    with in_this_process() as launcher:
        while time.monotonic() < until and (inputs is None or sum(begin.values()) < inputs):
            for kind in kinds:
                left = 10 * kind.share if inputs is None else min(10 * kind.share, inputs - sum(begin.values()))
                numbers = range(begin[kind.name], begin[kind.name] + left)
                found = try_kind(kind, folder, seed=seed, numbers=numbers, launcher=launcher, until=until)
                begin[kind.name] += left
                for name in ("refused", "read", "faults", "hangs", "found"):
                    setattr(tallies[kind.name], name, getattr(tallies[kind.name], name) + getattr(found, name))
    return tallies


def run() -> int:
    """The command line; 1: something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="end after this time [default: 120]")
    parser.add_argument("--inputs", type=int, help="end after so many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=[k.name for k in KINDS], help="this kind only")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dynbench-fuzz-") as name:
        prepare(Path(name))
        kinds = [k for k in KINDS if asked.kind in (None, k.name)]
        tallies = fuzz(Path(name), kinds, seed=asked.seed, inputs=asked.inputs, seconds=asked.seconds)
    print(table(tallies))
    found = [text for tally in tallies.values() for text in tally.found]
    for text in found:
        print(f"\n{text}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(run())
