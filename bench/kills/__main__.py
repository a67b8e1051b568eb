"""Command line of `bench.kills`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import bench.kills
from bench.kills import leftovers
from bench.kills.scene import KINDS, SETTLE_S, Kind, Scene
from bench.kills.table import readme
from bench.kills.trial import Trial, carry_out, drawn
from dynbench.files import write_text

RESULTS, README = "results.json", "README.md"
INTERRUPTED = 130


def main() -> int:
    """Parses options and carries out the trials; exit code 1: something was lost or left."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kills", description=bench.kills.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="so many SIGKILL [default: 200]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results; trials happen in DIR/scene")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, how and when [default: 0]")
    parser.add_argument("--only", choices=KINDS, action="append", help="only this command; may be repeated")
    parser.add_argument("--seconds", type=float, help="begin no trial after so many seconds")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so its children
    begun = time.monotonic()
    kinds = [KINDS[name] for name in options.only or KINDS]
    about = {"seed": options.seed, "commands": [kind.name for kind in kinds]}
    options.out.mkdir(parents=True, exist_ok=True)
    trials = _read(options.out / RESULTS, about)
    scene = Scene(options.out / "scene")
    try:
        scene.prepare(kinds)
        _go_on(options, trials, kinds, about, scene, begun)
    except KeyboardInterrupt:
        leftovers.end_processes(scene.mark)
        return INTERRUPTED
    return int(any(trial.landed and not trial.clean for trial in trials))


def _go_on(
    options: argparse.Namespace,
    trials: list[Trial],
    kinds: list[Kind],
    about: dict[str, object],
    scene: Scene,
    begun: float,
) -> None:
    """Carries out trials, adds them to the list and writes all of them down."""
    while sum(trial.landed and trial.signal == "SIGKILL" for trial in trials) < options.kills:
        if options.seconds is not None and time.monotonic() - begun > options.seconds:
            break
        trial = drawn(options.seed, len(trials), kinds)
        carry_out(trial, scene)
        trials.append(trial)
        _write(options.out, trials, about, scene, options.kills)
        verdict = "not hit" if not trial.landed else "clean" if trial.clean else "NOT CLEAN"
        what = f"{trial.command}, {trial.signal}, {trial.to}, {trial.fraction:.2f}"
        print(f"{trial.index}: {what}: {verdict}", flush=True)


def _read(file: Path, about: dict[str, object]) -> list[Trial]:
    if not file.exists():
        return []
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored["about"] != about:
        raise SystemExit(f"{file} has trials of {stored['about']}; give the same, or another --out")
    known = {f.name for f in fields(Trial)}
    return [Trial(**{name: value for name, value in row.items() if name in known}) for row in stored["trials"]]


def _write(out: Path, trials: list[Trial], about: dict[str, object], scene: Scene, wanted: int) -> None:
    rows = [asdict(trial) | {"clean": trial.clean if trial.landed else None} for trial in trials]
    stored = {"about": about, "usual_s": scene.seconds, "trials": rows}
    write_text(out / RESULTS, json.dumps(stored, indent=1) + "\n")
    command = f"python -m bench.kills --kills {wanted} --seed {about['seed']}"
    write_text(out / README, readme(trials, scene, command, wanted, SETTLE_S))


if __name__ == "__main__":
    sys.exit(main())
