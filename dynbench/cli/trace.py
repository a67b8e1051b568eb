"""`dynbench trace`: one profile with everything named."""

from __future__ import annotations

from pathlib import Path

import click

from dynbench.cli import completion
from dynbench.cli.common import SEED, data_option, device_option, echo, threads_option
from dynbench.errors import UserError


@click.command("trace", short_help="A profile with phases, points and regions named.")
@click.argument("workload", metavar="WORKLOAD|FILE.toml", shell_complete=completion.workload)
@device_option
@click.option(
    "--strategy",
    metavar="NAME",
    shell_complete=completion.strategy,
    help="Of `dynbench list strategies`, or your own.  [default: compaction]",
)
@click.option(
    "--engine",
    default="eager",
    show_default=True,
    metavar="NAME",
    shell_complete=completion.engine,
    help="What executes the regions.",
)
@click.option("--graph", is_flag=True, help="The whole network as one ONNX Runtime graph.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Items per batch.  [default: the largest]")
@click.option("--batches", type=click.IntRange(1, 10_000), default=4, show_default=True, metavar="N", help="How many.")
@click.option(
    "--decisions",
    metavar="NAME",
    shell_complete=completion.decision,
    help="learned, synthetic, published or replay:TRACE.",
)
@threads_option
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Of the stream and of decisions.")
@data_option
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder.  [default: traces/WORKLOAD-...]")
def command(
    workload: str,
    device: str,
    strategy: str | None,
    engine: str,
    graph: bool,
    batch: int | None,
    batches: int,
    decisions: str | None,
    threads: int,
    seed: int,
    data_dir: Path | None,
    out: Path | None,
) -> None:
    """Profile a few batches of WORKLOAD: a trace for Perfetto, Chrome and TensorBoard, and a page with a flame graph.

    Each phase of the strategy (decide, gather, body, scatter, sync, head), each decision point and each region is a
    named range around the operators that it calls. With --graph the record is ONNX Runtime's own, under the same names.
    """
    from dynbench import devices
    from dynbench.analysis.formatting import way_in_words
    from dynbench.analysis.timeline import nested
    from dynbench.experiment import Options, check_options, load_spec
    from dynbench.experiment.tracing import trace_workload
    from dynbench.report.timeline import write_timeline
    from dynbench.store.run import file_name

    if graph and engine != "eager":
        raise UserError("--graph runs the whole network in ONNX Runtime; give no --engine with it")
    spec = load_spec(workload)
    size = batch or max(spec.run.batch_sizes)
    options = check_options(
        Options(
            device=devices.device(device).name,
            strategies=None if strategy is None else [strategy],
            engines=[engine],
            batch_sizes=[size],
            decisions=None if decisions is None else [decisions],
            threads=threads,
            seed=seed,
            data_dir=data_dir,
        )
    )
    folder = out or Path("traces") / file_name(f"{spec.name}-{strategy or 'compaction'}-b{size}")
    found = trace_workload(spec, options, folder, batches=batches, graph=graph)
    facts = [
        ("what ran", f"{found.arm.name} {way_in_words(found.arm)}"),
        ("decisions", found.decisions),
        ("batches", f"{found.batches} of {found.batch_size} items"),
        ("device", f"{options.device}, {threads} thread{'' if threads == 1 else 's'}"),
    ]
    page = write_timeline(folder, spec.title, facts, nested(found.events))
    echo(f"{len(found.events)} events: {found.file}")
    echo("open it in Perfetto (ui.perfetto.dev) or chrome://tracing, or with TensorBoard and torch-tb-profiler:")
    echo(f"  tensorboard --logdir {folder}")
    echo(f"page: {page}")
