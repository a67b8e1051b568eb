"""`python -m tests.bench.trust DIR`: how far `dynbench check` can be trusted on this machine, counted in many checks.

A small repository with an early-exit network is checked again and again: against itself (A/A), half of the time with
two busy neighbours, and against heads with real extra work of 10, 5 and 3 %. The same pairs are judged by two separate
blocks of torch.utils.benchmark with the same time in all, once by whether their interquartile ranges touch and once by
a fixed threshold of 10 %. Every trial is a line of DIR/trials.jsonl; what is there is not done again. Ctrl-C at any
time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AA, INJECTED, EXTRA = 200, 30, (0.10, 0.05, 0.03)
JUDGES = ("check", "two blocks", "10 % threshold")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}

NET = '''"""An early-exit network, untrained."""

import torch
from torch import nn

from dynbench.dynamic import Exits

EXTRA = 0  # matrix products that the answer does not need


def block(i, o, stride=1):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


def head(c):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        stages = [nn.Sequential(block(3, 16), block(16, 16)), block(16, 32, 2), block(32, 64, 2)]
        self.exits = Exits("exit", stages, [head(c) for c in (16, 32, 64)], lambda y, x, k: y[:, 0] > y[:, 1])
        self.register_buffer("a", torch.full((96, 96), 0.01), persistent=False)

    def forward(self, x):
        for _ in range(EXTRA):
            self.a @ self.a
        return self.exits(x)


def build():
    torch.manual_seed(0)
    return Net()
'''
WORKLOAD = """schema = 1
name = "net"
title = "An early-exit network"
model = "net.py:build"
inputs = { name = "digits" }
run = { batch_sizes = [32] }
"""
# A block of its own: prints median, first and third quartile of one pass over 64 inputs, in s.
BLOCK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from torch.utils.benchmark import Timer
import net
from dynbench.data import load_inputs
from dynbench.dynamic import Execution
from dynbench.strategies import Cascading
model = net.build().eval()
x = torch.from_numpy(load_inputs("digits", "test", data_dir=None, limit=64, seed=0).inputs[:64])
ex = Execution(Cascading())
def run():
    with torch.inference_mode():
        for i in (0, 32):
            ex.run(model, x[i:i + 32], start=i, items=64)
m = Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=float(sys.argv[2]))
print(json.dumps([m.median, m._p25, m._p75]))
"""


def trials(seed: int = 0) -> list[dict[str, Any]]:
    """All trials in the order they are done: mixed, so that an unfinished evaluation holds some of each."""
    found: list[dict[str, Any]] = [{"id": f"aa{i}", "extra": 0.0, "busy": i % 2 == 1} for i in range(AA)]
    found += [{"id": f"extra{e:g}-{i}", "extra": e, "busy": False} for e in EXTRA for i in range(INJECTED)]
    random.Random(seed).shuffle(found)
    return found


def main() -> int:
    """Does the trials that are missing, then prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trust", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=60.0, help="of every check [default: 60]")
    parser.add_argument("--trials", type=int, default=10**9, help="at most so many now")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "trials.jsonl"
    done = {r["id"] for r in read(file)}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            root = repository(Path(scratch) / "repo")
            per_percent = calibrate(root)
            for trial in [t for t in trials() if t["id"] not in done][: options.trials]:
                row = one(root, trial, options.seconds, per_percent)
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(row["id"], row["busy"], row["check"], row["two blocks"], file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped; go on with the same command", file=sys.stderr)
    print(table(read(file)))
    return 0


def read(file: Path) -> list[dict[str, Any]]:
    """The trials done so far; a last line that was cut off does not count."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def repository(root: Path) -> Path:
    """The network, committed."""
    root.mkdir()
    (root / "net.py").write_text(NET)
    (root / "net.toml").write_text(WORKLOAD)
    commands = ["init -q -b main", "config user.email a@b.c", "config user.name a", "add -A", "commit -q -m base"]
    for command in commands:
        subprocess.run(["git", "-C", str(root), *command.split()], check=True)
    return root


def edited(root: Path, products: int) -> None:
    (root / "net.py").write_text(NET.replace("EXTRA = 0", f"EXTRA = {products}"))


def calibrate(root: Path) -> float:
    """Matrix products per call that take 1 % of its time: from passes with and without 400 of them, in turns."""
    times: dict[int, list[float]] = {0: [], 400: []}
    for _ in range(5):
        for products, seen in times.items():
            edited(root, products)
            seen.append(block(root, 1.0)[0])
    edited(root, 0)
    plain, more = (sorted(seen)[2] for seen in times.values())
    return 400 / (100 * (more / plain - 1))


def one(root: Path, trial: dict[str, Any], seconds: float, per_percent: float) -> dict[str, Any]:
    """A trial: the check and the two blocks."""
    products = round(100 * trial["extra"] * per_percent)
    with neighbours(2 if trial["busy"] else 0):
        edited(root, products)
        begin = time.monotonic()
        gate = checked(root, seconds)
        took_s = time.monotonic() - begin
        edited(root, 0)
        base = block(root, seconds / 2 - 6)
        edited(root, products)
        head = block(root, seconds / 2 - 6)
    apart = head[1] > base[2] or base[1] > head[2]
    ratio = head[0] / base[0]
    word = "SLOWER" if ratio > 1 else "FASTER"
    (cell,) = gate["cells"]
    return {
        **trial, "products": products, "check": cell["outcome"], "check_s": took_s, "change": cell["change"],
        "resolution": cell["resolution"], "laps": cell["laps"], "two blocks": word if apart else "SAME",
        "10 % threshold": word if max(ratio, 1 / ratio) > 1.1 else "SAME", "blocks_ratio": ratio,
        "load": os.getloadavg()[0],
    }  # fmt: skip


def checked(root: Path, seconds: float) -> dict[str, Any]:
    """What `dynbench check` says by the clock: more work is accepted here, as counting would find it at once."""
    out = root.parent / "gate.json"
    command = [sys.executable, "-m", "dynbench", "check", str(root / "net.toml"), "--base", "main", "--accept", "work",
               "--time", f"{seconds:g}", "--json", str(out)]  # fmt: skip
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, cwd=root)
    if done.returncode not in (0, 1, 3) or not out.is_file():
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return found


def block(root: Path, seconds: float) -> list[float]:
    """Median and quartiles of torch.utils.benchmark in a process of its own."""
    here = str(Path(__file__).parents[2])
    env = {**ENV, "PYTHONPATH": here}
    done = subprocess.run([sys.executable, "-c", BLOCK, str(root), f"{max(seconds, 0.5):g}"], env=env, check=True,
                          capture_output=True, text=True)  # fmt: skip
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that compute without end."""
    spin = "import math\nwhile True: math.sqrt(2.0)"
    busy = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def table(rows: list[dict[str, Any]]) -> str:
    """Rates with Clopper-Pearson intervals, by judge."""
    from scipy.stats import binomtest
    from tabulate import tabulate

    def rate(hits: int, of: int) -> str:
        if not of:
            return "none yet"
        found = binomtest(hits, of).proportion_ci(0.95, method="exact")
        return f"{hits} of {of} ({100 * found.low:.0f} to {100 * found.high:.0f} %)"

    lines = []
    for judge in JUDGES:
        for name, mine in groups(rows):
            said = [r[judge] for r in mine]
            lines.append([
                judge, name, rate(said.count("SLOWER"), len(said)), rate(said.count("FASTER"), len(said)),
                rate(said.count("AMBIGUOUS"), len(said)),
            ])  # fmt: skip
    return tabulate(lines, ["judge", "trials", "SLOWER (95 %)", "FASTER (95 %)", "AMBIGUOUS (95 %)"])


def groups(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The kinds of trial."""
    for busy in (False, True):
        yield (
            f"A/A, {'two busy neighbours' if busy else 'idle'}",
            [r for r in rows if not r["extra"] and r["busy"] is busy],
        )
    for extra in EXTRA:
        yield f"{100 * extra:g} % more work", [r for r in rows if r["extra"] == extra]


if __name__ == "__main__":
    raise SystemExit(main())
