"""`python -m bench`: how much dynbench itself costs, as ratios in one run. Speed is reported, never asserted."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.paired import Row

CHILD = "DYNBENCH_BENCH_CHILD"  # set in the process that measures
PARTS = ("null", "layer", "compaction", "cascading", "deployed", "alike", "agent", "picks", "command", "big")
LEGEND = """SkipNet-110 runs under compaction with replayed decisions (synthetic, keep-rate 0.5), the cascade under
cascading (half leave at each level; ResNet-38 is the static net). Efficiency is speed-up over ideal, the ideal dense
FLOPs over required region FLOPs. Ratios are medians over rounds in which all arms take turns, batch by batch."""
HEADERS = ["", "measured (95 % interval)", "target", "", "how"]


def main() -> int:
    """Parses options; measures in a process of its own, whose threads are set before torch is imported."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, nothing compiled")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON too")
    parser.add_argument("--threads", type=int, default=1, help="[default: 1]")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="run that parts picks and command read [default: newest of runs/]"
    )
    parser.add_argument("--device", default="cpu", help="of part layer: cpu or cuda [default: cpu]")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument(
        "--workload",
        action="append",
        metavar="NAME",
        help="only this one of parts deployed, alike and agent; may repeat",
    )
    options = parser.parse_args()
    if CHILD not in os.environ:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(options.threads))
        command = [sys.executable, "-m", "bench", *sys.argv[1:]]
        return subprocess.run(command, env=os.environ | threads | {CHILD: "1"}).returncode
    return measure(options)


def measure(options: argparse.Namespace) -> int:
    """Measures all parts, telling each row as it is found, and prints the table."""
    import torch
    from tabulate import tabulate

    found = []
    with torch.inference_mode():
        for row in rows(options):
            print("  ".join(filter(None, row.cells())), file=sys.stderr, flush=True)
            found.append(row.cells())
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    about = f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, load {load}"
    print(tabulate(found, HEADERS), LEGEND, about, sep="\n\n")
    if options.out:
        table = [dict(zip(("name", "measured", "target", "verdict", "how"), cells, strict=True)) for cells in found]
        options.out.write_text(json.dumps({"about": about, "rows": table}, indent=1) + "\n", encoding="utf-8")
    return 0


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of the parts that were chosen."""
    from bench import agent, alike, big_run, command, deployed, layer, null, picks, speed

    parts, seconds, thorough = options.only or PARTS, 6.0 if options.quick else 45.0, not options.quick
    if "null" in parts:
        yield from null.no_decision(seconds / 3)
    if "layer" in parts:
        yield from layer.against_by_hand(seconds, options.device)
    if "compaction" in parts:
        for batch in (32, 128):
            yield from speed.compaction_of_skipnet(batch, seconds, thorough)
    if "cascading" in parts:
        yield from speed.cascading_of_idk(128, seconds, thorough)
    if "deployed" in parts:
        yield from deployed.against_deployed(seconds / 2, options.workload)
    if "alike" in parts:
        yield from alike.decided_alike(seconds / 2, options.workload)
    if "agent" in parts:
        yield from agent.against_run(seconds, options.workload if options.only == ["agent"] else None)
    if "picks" in parts:
        yield from picks.of_run(options.run or command.newest_run())
    if "command" in parts:
        yield from command.default_suite(options.run or command.newest_run())
        yield from command.help_page(3 if options.quick else 15)
    if "big" in parts:
        yield from big_run.read_it()


if __name__ == "__main__":
    sys.exit(main())
