"""`python -m bench.gpu.train --out DIR --data DIR`: the networks on CIFAR-10, trained for as long as papers train them.

At most 9 minutes a call; the next call with the same folder goes on exactly where this one was, on another machine too.
Weights that are taken over into `workloads/weights` bring the [train] table of their file along into the workload's.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import FrameType

from dynbench.errors import DynbenchError, UserError
from dynbench.training.keeping import FOLDER, RECORD

HERE = Path(__file__).parent / "training"
WITHIN = 0.01  # of the published accuracy
MINUTES = 9.0


@dataclass(frozen=True)
class Published:
    """What a paper reports.

    Attributes:
        accuracy: top-1, of 1; on the original images, while ours may have been re-encoded as JPEG.
        where: in which paper.
    """

    accuracy: float
    where: str


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        file: a workload file beside this module.
        networks: that it writes, with what was published of them; None: nothing that could be found.
    """

    file: str
    networks: dict[str, Published | None]


PLANS = (
    Plan(
        "skipnet38_cifar10.toml",
        {
            "resnet38_cifar10": Published(0.9250, "SkipNet, table 2"),
            "skipnet38_cifar10": Published(0.9275, "README of ucbdrive/skipnet, after the hybrid stage"),
        },
    ),
    Plan(
        "idk_cifar10.toml",
        {
            "resnet8_cifar10": None,
            "resnet20_cifar10": Published(0.9125, "He et al., Deep Residual Learning, table 6"),
            "idk_cifar10": None,
        },
    ),
    Plan("msdnet_cifar10.toml", {"msdnet_cifar10_plain": None, "msdnet_cifar10": None}),
)


def finished(plan: Plan, out: Path) -> bool:
    """Whether all networks of a training are there, each with its card."""
    return all((out / f"{name}.{end}").is_file() for name in plan.networks for end in ("safetensors", "json"))


def unfinished(out: Path) -> str | None:
    """The name of the training that is unfinished; its networks may all be there, but not all was tidied up."""
    try:
        return str(json.loads((out / FOLDER / RECORD).read_text(encoding="utf-8"))["asked"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """In the block, SIGTERM comes after so many seconds: a training keeps the step that it makes, and ends."""

    def ask(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, ask)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def go_on(out: Path, data: Path, device: str, seconds: float, folder: Path = HERE) -> bool:
    """Trains what is not finished; returns whether all is.

    Args:
        out: folder of weights, cards and what is unfinished.
        data: folder of CIFAR-10.
        device: to train on.
        seconds: for all.
        folder: of the workload files.

    Raises:
        UserError: the folder has another training, the data are not there, or there is no such device.
    """
    from dynbench import devices
    from dynbench.experiment import load_spec
    from dynbench.training import train_workload
    from dynbench.training.interrupts import Stopped

    devices.device(device)
    with interrupted_after(seconds):
        for plan in PLANS:
            spec = load_spec(str(folder / plan.file))
            if finished(plan, out) and unfinished(out) != spec.name:
                continue
            table = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
            try:
                train_workload(table, out, device, data_dir=data, resume=True, progress=False, folder=spec.folder)
            except Stopped:
                return False
    return True


def results(out: Path) -> Iterator[tuple[str, bool]]:
    """For each network a sentence, and whether it is what was published, as far as that is known."""
    for plan in PLANS:
        for name, published in plan.networks.items():
            card = out / f"{name}.json"
            if not (card.is_file() and finished(Plan(plan.file, {name: published}), out)):
                yield f"{name}: not finished", True
                continue
            facts = json.loads(card.read_text(encoding="utf-8"))
            accuracy = float(facts["accuracy"])
            line = f"{name}: {accuracy:.2%}"
            if "computation" in facts:
                line += f" with {facts['computation']:.1%} of the computation"
            if published is None:
                yield f"{line}; no published figure to compare with", True
                continue
            good = accuracy >= published.accuracy - WITHIN
            verdict = "within a point of" if good else "more than a point below"
            yield f"{line}; {verdict} the published {published.accuracy:.2%} ({published.where})", good


def main() -> int:
    """Trains for a while; exit code 1: a finished network is less accurate than published, 3: all is not finished."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of weights and cards")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of CIFAR-10")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for this call [default: 9]")
    parser.add_argument("--device", default="cuda", help="[default: cuda]")
    options = parser.parse_args()
    try:
        if not 0 < options.minutes < inf:
            raise UserError(f"--minutes {options.minutes:g}; accepted: more than 0")
        done = go_on(options.out, options.data, options.device, 60 * options.minutes)
    except DynbenchError as e:
        print(f"Error: {e}", file=sys.stderr)
        return 2
    found = list(results(options.out))
    print(*(line for line, _ in found), sep="\n")
    if not done:
        print("the time is over; the same command goes on")
        return 3
    return int(not all(good for _, good in found))


if __name__ == "__main__":
    sys.exit(main())
