"""`dynbench search`: find the most accurate network within a latency budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynbench.cli import completion
from dynbench.cli.common import SEED, Finite, data_option, device_option, echo, json_option, print_json, print_table

if TYPE_CHECKING:
    from dynbench.training.predictor import Answer, Trust

TOLERANCE = 1.1  # of the budget; a slower network is reported as over it


@click.command("search", short_help="Find the network for a latency budget.")
@click.argument("workload", metavar="WORKLOAD|FILE.toml", default="dmasking_digits", shell_complete=completion.workload)
@click.option(
    "--max-latency-ms",
    type=Finite(min=0, min_open=True),
    required=True,
    metavar="MS",
    help="The budget: latency of a batch on this machine.",
)
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Inputs in a batch.")
@click.option(
    "--samples",
    type=click.IntRange(min=10),
    default=32,
    show_default=True,
    help="Networks to measure here, from which the predictor learns latency.",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Timed passes of each network."
)
@click.option(
    "--train/--no-train", default=True, help="Train the network found, to measure its accuracy.  [default: train]"
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of networks, predictor and search.")
@device_option
@data_option
@json_option
def command(
    workload: str,
    max_latency_ms: float,
    batch: int,
    samples: int,
    rounds: int,
    train: bool,
    seed: int,
    device: str,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Find the most accurate network of a search space within a latency budget, in minutes on a CPU.

    A predictor learns latency from a few networks measured on this machine, and accuracy from the trained networks
    that the model card of WORKLOAD lists. An evolutionary search ranks networks by the predictor, without training them
    (the idea of FBNetV3). The network found is then measured, and trained with the recipe of the others.
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
    choice, budget = found.choice, found.budget
    architecture = choice.architecture
    echo(
        f"Picked of {found.networks:,} networks, for at most {budget.max_latency_ms:g} ms for a batch of "
        f"{budget.batch}:",
        "",
    )
    echo(f"resolution = {architecture.resolution}")
    echo(f"channels = {list(architecture.channels)}")
    echo(f"widths = {list(architecture.widths)}", "")
    print_table(_rows(found))
    echo()
    if choice.measured_ms > TOLERANCE * budget.max_latency_ms:
        ratio = choice.measured_ms / budget.max_latency_ms
        echo(f"Over the budget: the measured latency is {ratio:.2f} times the one asked for.")
    echo(
        f"Predicted against measured, by cross-validation: latency {_trust(choice.latency, '%')}; accuracy "
        f"{_trust(choice.accuracy, 'points')}, without pre-training {_trust(choice.accuracy_unpretrained, 'points')}."
    )
    echo(
        f"Latencies were measured on this machine, with one thread; accuracies are predicted from "
        f"{choice.accuracy.networks} trained networks. The search took {found.seconds:.0f} s."
    )


def _rows(found: Answer) -> list[dict[str, Any]]:
    choice, budget = found.choice, found.budget
    return [
        {
            "": f"latency of a batch of {budget.batch}, ms",
            "predicted": f"{choice.predicted_ms:.2f}",
            "measured": f"{choice.measured_ms:.2f}",
            "largest_network": f"{choice.largest_ms:.2f}",
        },
        {
            "": "top-1 accuracy, %",
            "predicted": f"{100 * choice.predicted_accuracy:.1f}",
            "measured": "not trained" if found.accuracy is None else f"{100 * found.accuracy:.1f}",
        },
        {
            "": "million MACs of an input",
            "measured": f"{choice.macs / 1e6:.3f}",
            "largest_network": f"{found.most / 1e6:.3f}",
        },
    ]


def _trust(trust: Trust, unit: str) -> str:
    rank = "unavailable" if trust.rank_correlation is None else f"{trust.rank_correlation:.2f}"
    return f"rank correlation {rank}, median error {100 * trust.error:.1f} {unit} ({trust.networks} networks)"
