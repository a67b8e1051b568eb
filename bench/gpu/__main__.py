"""`python -m bench.gpu --out DIR`: all that dynbench can show on a GPU, in at most 9 minutes.

It runs from the working tree, with whatever torch this Python has and without a network. Every step is a command that
can be called by itself; its output and result are written as soon as it ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path

from bench.gpu.needs import missing
from bench.gpu.steps import LEAST_S, Outcome, Step, play, told
from dynbench.errors import UserError

COVERING = (  # all kinds of decision points, which a test checks
    *("skipnet38_digits", "blockdrop38_synthetic", "idk_digits", "msdnet_digits", "moe_text", "universal_text"),
    *("dynvit_digits", "tome_digits", "spatial_digits", "dsnet_digits", "condconv_digits", "nmn_shapes"),
)
MINUTES = 9.0
ONE_THREAD = (("OMP_NUM_THREADS", "1"), ("MKL_NUM_THREADS", "1"))


def steps(out: Path, device: str) -> Iterator[Step]:
    """What is done, in order.

    Args:
        out: folder of results.
        device: 'cuda', or 'cpu' to try the commands where there is no GPU.
    """
    python = sys.executable
    dynbench = [python, "-m", "dynbench"]
    on = ["--device", device]
    learned = ["--decisions", "learned"]
    run, deployed, engines = (str(out / name) for name in ("run", "deployed", "engines"))
    yield Step("doctor", [*dynbench, "doctor", "--seconds", "2"], 40)
    yield Step(
        "tests", [python, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "tests"], 110, ONE_THREAD
    )
    for dtype in ("float32", "bfloat16"):
        yield Step(f"verify_{dtype}", [*dynbench, "verify", *COVERING, *on, "--dtype", dtype], 60, ONE_THREAD)
    batches = ["--batch", "1,8,32,256", "--time-limit", "1.5"]
    yield Step("run", [*dynbench, "run", *on, *learned, *batches, "--out", run], 150)
    yield Step("layer", [python, "-m", "bench", "--quick", "--only", "layer", *on], 40)
    both = ["--batch", "1,256", "--time-limit", "3", "--controls", "all"]
    yield Step("deployed", [*dynbench, "run", *on, *learned, *both, "--strategy", "auto", "--out", deployed], 80)
    every = "eager,compile" + (",cuda_graph" if device != "cpu" else "")
    largest = ["--batch", "256", "--time-limit", "3", "--engine", every]
    yield Step("engines", [*dynbench, "run", "idk_digits", *on, *learned, *largest, "--out", engines], 60)
    yield Step("energy", [python, "-m", "bench.gpu.energy", run, deployed], 10)
    for workload in ("skipnet38_digits", "moe_text"):
        at = ["--batch", "32", "--out", str(out / "traces" / workload)]
        yield Step(f"trace_{workload}", [*dynbench, "trace", workload, *on, *at], 30)


def main() -> int:
    """Runs the steps; exit code 1: one of them was not completed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of results, which is made")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all steps [default: 9]")
    parser.add_argument("--device", default="cuda", help="cuda; or cpu, to try the commands [default: cuda]")
    parser.add_argument("--only", action="append", metavar="STEP", help="only this step; may be repeated")
    options = parser.parse_args()
    try:
        found = show(options.out, options.device, 60 * options.minutes, options.only)
    except UserError as e:
        print(f"Error: {e}", file=sys.stderr)
        return 2
    return int(any(one.status != "ok" for one in found))


def show(out: Path, device: str, seconds: float, only: list[str] | None = None) -> list[Outcome]:
    """Runs the steps and prints a table.

    Raises:
        UserError: a package is missing, there is no such device or step, or the folder is in use.
    """
    if lacking := missing():
        raise UserError(f"this Python lacks {', '.join(lacking)}; docs/cuda.md says how to bring packages along")
    check_device(device)
    todo = list(steps(out, device))
    if unknown := [name for name in only or [] if name not in {step.name for step in todo}]:
        raise UserError(f"--only {unknown[0]}: no such step; there are {', '.join(step.name for step in todo)}")
    if not LEAST_S <= seconds < inf:
        raise UserError(f"--minutes {seconds / 60:g}; accepted: {LEAST_S / 60:.2g} or more")
    chosen = [step for step in todo if not only or step.name in only]
    if taken := [step.name for step in chosen if (out / step.name).exists()]:
        raise UserError(f"--out {out}: it has a folder {taken[0]!r} already; name another one")
    out.mkdir(parents=True, exist_ok=True)
    found = play(chosen, out, seconds, lambda line: print(line, flush=True))
    print("", *told(found), f"all of it: {out}", sep="\n")
    return found


def check_device(device: str) -> None:
    """Checks that there is such a device.

    Raises:
        UserError: there is not.
    """
    from dynbench import devices

    devices.device(device)


if __name__ == "__main__":
    sys.exit(main())
