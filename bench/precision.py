"""`python -m bench.precision DIR`: how long until a ratio of equal sides is known to +-1 %, and its error.

`dynbench check` of a network against itself with several times given to it, and torch.utils.benchmark's adaptive mode,
once for either side in a process of its own, with several thresholds (of the interquartile range over the median, which
is what it stops by: how much single runs scatter, not how well their median is known). Both sides are the same code, so
what a ratio differs from 1 is its error. Every trial is a line of DIR/precision.jsonl and not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.trust import BLOCK, ENV, checked, read, repository

SECONDS = (15, 20, 30, 45, 60)  # of a check
THRESHOLDS = (0.1, 0.05, 0.02, 0.01)  # of the adaptive mode; 0.1 is its default
MOST_S = 30.0  # of the adaptive mode, for each side
ADAPTIVE = BLOCK.replace(
    "blocked_autorange(min_run_time=float(sys.argv[2]))",
    f"adaptive_autorange(threshold=float(sys.argv[2]), max_run_time={MOST_S})",
)


def main() -> int:
    """Does the trials that are missing, then writes the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--times", type=int, default=3, help="how often each way is tried [default: 3]")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "precision.jsonl"
    done = {r["id"] for r in read(file)}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            root = repository(Path(scratch) / "repo")
            for n in range(options.times):
                for way, given in [("check", s) for s in SECONDS] + [("adaptive", t) for t in THRESHOLDS]:
                    name = f"{way} {given:g} {n}"
                    if name not in done:
                        row = {"id": name, "way": way, "given": given, **trial(root, way, given)}
                        with file.open("a", encoding="utf-8") as lines:
                            lines.write(json.dumps(row) + "\n")
                        print(row, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped; go on with the same command", file=sys.stderr)
    text = table(read(file))
    (options.folder / "precision.md").write_text(text + "\n")
    print(text)
    return 0


def trial(root: Path, way: str, given: float) -> dict[str, Any]:
    """How long it took, its ratio, and the half-width that it claims, as a share."""
    begin = time.monotonic()
    if way == "check":
        (cell,) = checked(root, given)["cells"]
        change = cell["change"]
        ratio, claimed = change["value"], math.log(change["high"] / change["low"]) / 2
    else:
        command = [sys.executable, "-c", ADAPTIVE, str(root), f"{given:g}"]
        done = [subprocess.run(command, env=ENV, check=True, capture_output=True, text=True) for _ in range(2)]
        (one, low, high), (other, *_) = (json.loads(d.stdout.splitlines()[-1]) for d in done)
        ratio, claimed = other / one, (high - low) / one
    return {"took_s": time.monotonic() - begin, "ratio": ratio, "claimed": claimed}


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over the trials, in Markdown."""
    from tabulate import tabulate

    heads = ["way", "trials", "s, both sides", "what it says of itself", "its error: median, largest"]
    return tabulate(list(_lines(rows)), heads, tablefmt="pipe", disable_numparse=True)


def _lines(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    for way, givens in (("check", SECONDS), ("adaptive", THRESHOLDS)):
        for given in givens:
            mine = [r for r in rows if (r["way"], r["given"]) == (way, given)]
            if not mine:
                continue
            took, claimed = (statistics.median(r[k] for r in mine) for k in ("took_s", "claimed"))
            errors = [abs(math.log(r["ratio"])) for r in mine]
            name = f"check, {given:g} s" if way == "check" else f"adaptive_autorange, {100 * given:g} %"
            says = "half-width of the 95 % interval" if way == "check" else "interquartile range / median"
            error = f"{100 * statistics.median(errors):.1f} %, {100 * max(errors):.1f} %"
            yield [name, str(len(mine)), f"{took:.0f}", f"{100 * claimed:.1f} % {says}", error]


if __name__ == "__main__":
    raise SystemExit(main())
