"""`python -m bench.change_points`: how many steps are found, and how many that are none, on made-up series.

60 runs of a ratio with 2 % noise, a step at run 40, and single runs that are 10 to 50 % too slow. It prints a table
beside what other methods reached on such series, measured once on 40 to 60 series each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from dynbench.analysis import change_points as own

RUNS, AT, NOISE = 60, 40, 0.02
NEAR = 5  # a step found so many runs away is found
STEPS, SPIKES = (0.0, 0.03, 0.05, 0.10), (0, 1, 3)
Method = Callable[[np.ndarray], list[int]]
MEASURED_ELSEWHERE = {  # (false points without a step; steps of 3, 5, 10 % found), for 0, 1 and 3 spikes
    "Otava 0.8, window 50, p 0.001": ((0.05, 0.25, 0.20), (82, 40, 2), (98, 70, 28), (100, 92, 65)),
    "Hampel, then Otava 0.8": ((0.05, 0.00, 0.07), (82, 85, 72), (98, 98, 100), (100, 100, 100)),
    "ruptures PELT L1, 4 ln n sigma": ((0.00, 0.00, 0.00), (17, 13, 13), (93, 88, 77), (100, 100, 100)),
}


def series(
    seed: int, step: float = 0.0, spikes: int = 0, at: int = AT, runs: int = RUNS, alike: float = 0.0
) -> np.ndarray:
    """[runs] ratios around 1, and 1 + step from run `at` on; `alike`: correlation of the noise of neighbouring runs."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, NOISE, runs)
    for i in range(1, runs if alike else 0):
        noise[i] = alike * noise[i - 1] + np.sqrt(1 - alike**2) * noise[i]
    x = (1 + noise) * np.where(np.arange(runs) >= at, 1 + step, 1)
    x[rng.choice(runs, spikes, replace=False)] *= 1 + rng.uniform(0.1, 0.5, spikes)
    return x


def rates(method: Method, seeds: Sequence[int], step: float = 0.0, at: int = AT, **kind: float) -> tuple[float, float]:
    """Share of the steps that were found, and points per series that are no step."""
    hits = false = 0
    for seed in seeds:
        points = method(series(seed, step=step, at=at, **kind))  # type: ignore[arg-type]
        hit = any(abs(p - at) <= NEAR for p in points) and step != 0
        hits += hit
        false += len(points) - hit
    return hits / len(seeds), false / len(seeds)


def ours(x: np.ndarray) -> list[int]:
    """As dynbench does it."""
    return [c.index for c in own.change_points(x)]


def pelt(x: np.ndarray) -> list[int]:
    """The same despiking, then PELT with squared error at a penalty of 4 ln n."""
    import ruptures

    y = np.log(x)
    z = y[~own.outliers(x)]
    found = ruptures.Pelt("l2", min_size=own.SHORTEST, jump=1).fit(z / own._noise(z)).predict(4 * np.log(len(z)))
    return [int(np.flatnonzero(~own.outliers(x))[c]) for c in found[:-1]]


def methods() -> dict[str, Method]:
    """Those that can be run here."""
    found: dict[str, Method] = {"dynbench": ours}
    try:
        import ruptures  # noqa: F401
    except ImportError:
        return found
    return {**found, "the same despiking, ruptures PELT L2": pelt}


def main() -> None:
    """Prints the table."""
    from tabulate import tabulate

    parser = argparse.ArgumentParser(prog="python -m bench.change_points", description=__doc__)
    parser.add_argument("--series", type=int, default=400, help="[default: 400] seeds 0, 1, ...")
    seeds = range(parser.parse_args().series)
    rows = []
    for name, method in methods().items():
        row: list[str] = [name]
        for step in STEPS:
            found = [rates(method, seeds, step=step, spikes=n) for n in SPIKES]
            row.append(" / ".join(f"{100 * hit:.0f}" if step else f"{false:.3f}" for hit, false in found))
        rows.append(row)
    for name, (false_, *shares) in MEASURED_ELSEWHERE.items():
        rows.append([name, " / ".join(f"{f:.2f}" for f in false_), *(" / ".join(map(str, s)) for s in shares)])
    head = ["0 / 1 / 3 spikes:", "false points per series, no step", *(f"{s:.0%} step found, %" for s in STEPS[1:])]
    print(tabulate(rows, head, disable_numparse=True))
    late = {n: [rates(ours, seeds, step=s, at=RUNS - n, spikes=1)[0] for s in (0.05, 0.1, 0.2)] for n in (3, 4, 5, 8)}
    print("\nfound so soon after a step, one spike, %\n")
    print(
        tabulate([[n, *(f"{100 * v:.0f}" for v in r)] for n, r in late.items()], ["runs after", "5 %", "10 %", "20 %"])
    )
    alike = {rho: rates(ours, seeds, alike=rho)[1] for rho in (0.3, 0.6)}
    print(
        "\nfalse points per series where neighbouring runs are alike:",
        ", ".join(f"{v:.3f} at a correlation of {rho}" for rho, v in alike.items()),
    )


if __name__ == "__main__":
    main()
