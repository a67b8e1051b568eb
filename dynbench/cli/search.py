"""`dynbench search`: the network for a latency, picked by a predictor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli.common import data_option, device_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from dynbench.training.predictor import Answer, Trust

MISSED = 1.1  # times the predicted latency


@click.command("search", short_help="The network for a latency, picked by a predictor.")
@click.argument("workload", metavar="WORKLOAD|FILE.toml", default="dmasking_digits")
@click.option(
    "--max-latency-ms",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    metavar="MS",
    help="That a batch may take on this machine.",
)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Inputs at once.")
@click.option(
    "--samples",
    type=click.IntRange(min=10),
    default=32,
    show_default=True,
    help="Networks measured here for the predictor to learn from.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Timed, of each network.")
@click.option("--train/--no-train", default=True, help="Train what was picked, to see its accuracy.  [default: train]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of networks, predictor and search.")
@device_option
@data_option
@json_option
def command(
    workload: str, max_latency_ms: float, batch: int, samples: int, rounds: int, train: bool, seed: int, device: str,
    data_dir: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """The most accurate network of a search space that keeps a latency on this machine, in minutes of a CPU.

    A predictor learns latency from a few networks that are measured here, and accuracy from those that the card of
    WORKLOAD lists as trained; an evolutionary search asks it instead of training. The idea is FBNetV3's. What was
    picked is then measured, and trained as they were.
    """
    from dynbench import devices
    from dynbench.experiment import load_spec
    from dynbench.training.predictor import Budget, answer

    spec = load_spec(workload)
    found = answer(
        spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        spec.folder,
        devices.device(device),
        Budget(max_latency_ms, batch, samples, rounds, seed),
        train=train,
        data_dir=data_dir,
    )
    if as_json:
        print_json(found.as_json())
    else:
        _print(found)


def _print(found: Answer) -> None:
    c, b = found.choice, found.budget
    a = c.architecture
    click.echo(
        f"Picked of {found.networks:,} networks, for at most {b.max_latency_ms:g} ms for a batch of {b.batch}:\n"
    )
    click.echo(f"resolution = {a.resolution}\nchannels = {list(a.channels)}\nwidths = {list(a.widths)}\n")
    rows: list[dict[str, Any]] = [
        {
            "": f"latency of a batch of {b.batch}, ms",
            "predicted": f"{c.predicted_ms:.2f}",
            "measured": f"{c.measured_ms:.2f}",
            "largest_network": f"{c.largest_ms:.2f}",
        },
        {
            "": "top-1 accuracy, %",
            "predicted": f"{100 * c.predicted_accuracy:.1f}",
            "measured": "not trained" if found.accuracy is None else f"{100 * found.accuracy:.1f}",
        },
        {
            "": "million MACs of an input",
            "measured": f"{c.macs / 1e6:.3f}",
            "largest_network": f"{found.most / 1e6:.3f}",
        },
    ]
    print_table(rows)
    click.echo()
    if c.measured_ms > MISSED * b.max_latency_ms:
        click.echo(f"Doubt: it takes {c.measured_ms / b.max_latency_ms:.2f} times as long as it may.")
    click.echo(
        f"Predicted against measured, networks left out in turn: latency {_trust(c.latency, '%')}; accuracy "
        f"{_trust(c.accuracy, 'points')}, without pre-training {_trust(c.accuracy_unpretrained, 'points')}."
    )
    click.echo(
        f"Latencies were measured on this machine, with one thread; accuracies are predicted from "
        f"{c.accuracy.networks} trained networks. All this took {found.seconds:.0f} s."
    )


def _trust(t: Trust, unit: str) -> str:
    rank = "unavailable" if t.rank_correlation is None else f"{t.rank_correlation:.2f}"
    return f"rank correlation {rank}, median error {100 * t.error:.1f} {unit} ({t.networks} networks)"
