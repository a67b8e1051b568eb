"""`python -m bench.trust DIR`: how far `dynbench check` can be trusted on this machine, counted in many checks.

A small repository with an early-exit network is checked again and again: against itself (A/A), half of the time with
two busy neighbours, and against heads with real extra work of 10, 5 and 3 %. A quarter of the same pairs is judged by
two separate blocks of torch.utils.benchmark with the same time in all, once by whether their interquartile ranges touch
and once by a fixed threshold of 10 %. Every trial is a line of DIR/trials.jsonl; what is there is not done again.
Ctrl-C at any time. At the end, table.md, trust.svg and trust.png are written there.

With --jobs, idle trials run beside each other, each on a core of its own, where nothing else runs but the others.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynbench.gate.revisions import MALLOC_SETTINGS

AA, INJECTED, EXTRA = 200, 30, (0.10, 0.05, 0.03)
ANCHORED = 4  # one trial of so many is judged by the anchors, too
BLOCK_STARTS_S = 3.0  # of a block's time, for its process to begin
JUDGES = ("check", "two blocks", "10 % threshold")
# Blocks, too, keep their memory as the processes of a check do, so that extra work is the same share of both.
ENV = {
    **MALLOC_SETTINGS,
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).parents[1]),
}

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

    def anchored(i: int) -> bool:
        return i // 2 % ANCHORED == 0

    found = [{"id": f"aa{i}", "extra": 0.0, "busy": i % 2 == 1, "anchored": anchored(i)} for i in range(AA)]
    for extra in EXTRA:
        found += [
            {"id": f"extra{extra:g}-{i}", "extra": extra, "busy": False, "anchored": anchored(i)}
            for i in range(INJECTED)
        ]
    random.Random(seed).shuffle(found)
    return found


def turns(missing: Sequence[dict[str, Any]], jobs: int) -> Iterator[list[dict[str, Any]]]:
    """Trials that run at the same time: idle ones beside each other, one with busy neighbours alone, in turns."""
    idle, busy = ([t for t in missing if t["busy"] is kind] for kind in (False, True))
    while idle or busy:
        for mine, count in ((idle, jobs), (busy, 1)):
            if mine:
                yield mine[:count]
                del mine[:count]


def main() -> int:
    """Does the trials that are missing, then writes the table and the curves."""
    parser = argparse.ArgumentParser(prog="python -m bench.trust", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=60.0, help="of every check [default: 60]")
    parser.add_argument("--until", type=float, default=float("inf"), metavar="MIN", help="stop after so many minutes")
    parser.add_argument("--jobs", type=int, default=1, help="idle trials at the same time [default: 1]")
    parser.add_argument("--only", choices=("idle", "busy"), help="trials without, or with, busy neighbours")
    options = parser.parse_args()
    begin = time.monotonic()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "trials.jsonl"
    done = {r["id"] for r in read(file)}
    cores = sorted(os.sched_getaffinity(0))
    if options.jobs > len(cores):
        parser.error(f"--jobs {options.jobs}: there are {len(cores)} cores")
    kinds = [options.only == "busy"] if options.only else [False, True]
    missing = [t for t in trials() if t["id"] not in done and t["busy"] in kinds]
    try:
        with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
            roots = [repository(Path(scratch) / str(k) / "repo") for k in range(options.jobs)]
            per_percent = calibrate(roots[0]) if missing else 0.0
            for turn in turns(missing, options.jobs):
                if time.monotonic() - begin > 60 * options.until:
                    break
                places = [None] if options.jobs == 1 or turn[0]["busy"] else [[core] for core in cores[::-1]]
                asked = [
                    pool.submit(one, root, trial, options.seconds, per_percent, place)
                    for root, trial, place in zip(roots, turn, places, strict=False)
                ]
                for row in [found.result() for found in asked]:
                    with file.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(row) + "\n")
                    said = [row["id"], "busy" if row["busy"] else "idle", row["check"], row.get("two blocks", "")]
                    print(*said, f"{row['change']['value']:.3f} {row['resolution']:.3f}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped; go on with the same command", file=sys.stderr)
    rows = read(file)
    (options.folder / "table.md").write_text(table(rows) + "\n")
    curves(rows, options.folder)
    print(table(rows))
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
    root.mkdir(parents=True)
    (root / "net.py").write_text(NET)
    (root / "net.toml").write_text(WORKLOAD)
    commands = ["init -q -b main", "config user.email a@b.c", "config user.name a", "add -A", "commit -q -m base"]
    for command in commands:
        subprocess.run(["git", "-C", str(root), *command.split()], check=True)
    return root


def edited(root: Path, products: int) -> None:
    """Writes the network with so many extra products."""
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


def one(
    root: Path, trial: dict[str, Any], seconds: float, per_percent: float, cores: list[int] | None
) -> dict[str, Any]:
    """A trial: the check and, of some, the two blocks; on these cores."""
    products = round(100 * trial["extra"] * per_percent)
    row = {**trial, "products": products, "seconds": seconds, "cores": cores or sorted(os.sched_getaffinity(0))}
    with neighbours(2 if trial["busy"] else 0):
        edited(root, products)
        begin = time.monotonic()
        gate = checked(root, seconds, cores)
        took_s = time.monotonic() - begin
        (cell,) = gate["cells"]
        row |= {
            "check": cell["outcome"],
            "check_s": took_s,
            "change": cell["change"],
            "again": cell["again"],
            "resolution": cell["resolution"],
            "laps": cell["laps"],
            "sets": cell["processes"],
            "reason": cell["reason"],
            "load": os.getloadavg()[0],
        }
        if trial["anchored"]:
            edited(root, 0)
            base = block(root, seconds / 2 - BLOCK_STARTS_S, cores)
            edited(root, products)
            row |= anchors(base, block(root, seconds / 2 - BLOCK_STARTS_S, cores))
    return row


def anchors(base: list[float], head: list[float]) -> dict[str, Any]:
    """What two blocks say, by their quartiles and by a threshold."""
    apart, ratio = head[1] > base[2] or base[1] > head[2], head[0] / base[0]
    word = "SLOWER" if ratio > 1 else "FASTER"
    beyond = max(ratio, 1 / ratio) > 1.1
    return {
        "two blocks": word if apart else "SAME",
        "10 % threshold": word if beyond else "SAME",
        "blocks_ratio": ratio,
    }


def on(cores: list[int] | None, command: list[str]) -> list[str]:
    """The command, kept to some cores."""
    return command if cores is None else ["taskset", "-c", ",".join(map(str, cores)), *command]


def checked(root: Path, seconds: float, cores: list[int] | None = None) -> dict[str, Any]:
    """What `dynbench check` says by the clock: more work is accepted here, as counting would find it at once."""
    out = root.parent / "gate.json"
    command = [
        sys.executable,
        "-m",
        "dynbench",
        "check",
        str(root / "net.toml"),
        "--base",
        "main",
        "--accept",
        "work",
        "--time",
        f"{seconds:g}",
        "--json",
        str(out),
    ]
    done = subprocess.run(on(cores, command), env=ENV, capture_output=True, text=True, cwd=root)
    if done.returncode not in (0, 1, 3) or not out.is_file():
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return found


def block(root: Path, seconds: float, cores: list[int] | None = None) -> list[float]:
    """Median and quartiles of torch.utils.benchmark in a process of its own."""
    command = [sys.executable, "-c", BLOCK, str(root), f"{max(seconds, 0.5):g}"]
    done = subprocess.run(on(cores, command), env=ENV, check=True, capture_output=True, text=True)
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
    """Rates with Clopper-Pearson intervals, by judge, in Markdown."""
    from tabulate import tabulate

    lines = []
    for judge in JUDGES:
        for name, mine in groups(rows):
            said = [r[judge] for r in mine if judge in r]
            counts = [said.count(word) for word in ("SLOWER", "FASTER", "AMBIGUOUS")]
            lines.append([judge, name, *(rate_text(hits, len(said)) for hits in counts)])
    heads = ["judge", "trials", "SLOWER (95 %)", "FASTER (95 %)", "AMBIGUOUS (95 %)"]
    return tabulate(lines, heads, tablefmt="pipe", disable_numparse=True)


def rate(hits: int, of: int) -> tuple[float, float, float]:
    """Share, and its Clopper-Pearson interval."""
    from scipy.stats import binomtest

    found = binomtest(hits, of).proportion_ci(0.95, method="exact")
    return hits / of, float(found.low), float(found.high)


def rate_text(hits: int, of: int) -> str:
    """'3 of 25 (12 %)', or that there are none yet."""
    if not of:
        return "none yet"
    _, low, high = rate(hits, of)
    return f"{hits} of {of} ({100 * low:.0f} to {100 * high:.0f} %)"


def curves(rows: list[dict[str, Any]], folder: Path) -> None:
    """How often SLOWER is said, by judge, over the extra work; and what change a check saw in each trial."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    idle = [r for r in rows if not r["busy"]]
    for k, judge in enumerate(JUDGES):
        points = []
        for extra in (0.0, *reversed(EXTRA)):
            said = [r[judge] for r in idle if r["extra"] == extra and judge in r]
            if said:
                points.append((100 * extra + 0.12 * (k - 1), *rate(said.count("SLOWER"), len(said))))
        if points:
            x, y, low, high = zip(*points, strict=True)
            ends = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            left.errorbar(x, y, yerr=ends, marker="o", capsize=3, label=judge)
    left.set(xlabel="extra work in %", ylabel="said SLOWER, share of the trials", ylim=(-0.03, 1.03))
    left.legend()
    for name, mine in groups(rows):
        seen = [100 * (r["change"]["value"] - 1) for r in mine]
        if seen:
            sns.ecdfplot(x=seen, ax=right, label=name)
    right.set(xlabel="change that the check saw in %", ylabel="share of the trials")
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3, frameon=False)
    for kind in ("svg", "png"):
        figure.savefig(folder / f"trust.{kind}", dpi=150)
    plt.close(figure)


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
