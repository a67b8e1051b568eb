"""`dynbench compile`: a network as files that run without dynbench and without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dynbench.cli import completion
from dynbench.cli.common import data_option, echo
from dynbench.errors import DynbenchError, UserError

if TYPE_CHECKING:
    from dynbench.deploy.build import Written


@click.command("compile", short_help="Write a network as ONNX graphs that skip what is not needed.")
@click.argument("workload", required=False, metavar="[WORKLOAD|FILE.toml]", shell_complete=completion.workload)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the bundle.")
@click.option("--check", "checked", type=click.Path(path_type=Path), metavar="DIR", help="Prove a bundle again.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of the choice of inputs that go with it.")
@click.option("--opset", type=int, metavar="N", help="Version of ONNX's operators, 13 to 20.  [default: 17]")
@data_option
def command(
    workload: str | None,
    out: Path | None,
    checked: Path | None,
    seed: int,
    opset: int | None,
    data_dir: Path | None,
) -> None:
    """Write a *bundle*: the dynamic network as one ONNX graph, and what proves it right.

    It holds a graph for any number of items, one for a single item, the static baselines, inputs, the answers and
    decisions that are right for them, and `run.py`, which needs numpy and onnxruntime only. Each graph is compared with
    the network before it is written. Exit code 1: a graph answers or decides otherwise.
    """
    if checked is not None:
        if workload is not None or out is not None or opset is not None:
            raise UserError("--check proves the bundle in a folder; give no workload, no --out and no --opset with it")
        _check(checked)
        return
    if workload is None or out is None:
        raise UserError("give a workload and --out DIR, or --check DIR")
    _compile(workload, out, seed, opset, data_dir)


def _compile(workload: str, out: Path, seed: int, opset: int | None, data_dir: Path | None) -> None:
    from dynbench.deploy.build import compile_bundle
    from dynbench.experiment import Options, load_specs
    from dynbench.graph import OPSET

    begin = time.monotonic()
    (spec,) = load_specs([workload])
    written = compile_bundle(spec, out, Options(seed=seed, data_dir=data_dir), OPSET if opset is None else opset)
    _tell(written, time.monotonic() - begin)


def _tell(written: Written, seconds: float) -> None:
    manifest = written.manifest
    work = {g.network: g.flops_per_item for g in manifest.graphs}
    dense = work.get(manifest.primary or "")
    for graph in manifest.graphs:
        line = f"{graph.file:<24} {written.bytes_by_file[graph.file] / 1e6:7.2f} MB"
        if graph.flops_per_item is not None:
            line += f"  {graph.flops_per_item / 1e6:10.2f} MFLOP per item"
            if dense and graph.network == "dynamic":
                line += f" ({graph.flops_per_item / dense:.0%} of {manifest.primary})"
        echo(line)
    for name, why in manifest.left_out.items():
        echo(f"left out: {name}: {why}")
    proofs = [proof for graph in manifest.graphs for proof in graph.proofs]
    kinds = ", ".join(dict.fromkeys(proof.decisions for proof in proofs if proof.decisions != "-"))
    sizes = ", ".join(map(str, sorted({proof.items for proof in proofs})))
    echo(f"proved with decisions {kinds} at batch {sizes}; {seconds:.1f} s")
    echo(f"bundle: {written.folder} (python {written.folder / 'run.py'})")


def _check(folder: Path) -> None:
    from dynbench.deploy.bundle import check

    failed = []
    for found in check(folder, lambda file: echo(f"{file:<24} not checked: it is for another kind of machine")):
        same = "same" if found.ok else "DIFFERENT"
        if found.decisions_differ:
            same += f", {found.decisions_differ} of {found.decisions} decisions differ"
        echo(f"{found.file:<24} batch {found.items:>4}  {found.error:8.1e} (at most {found.tolerance:g})  {same}")
        if not found.ok:
            failed.append(found)
    if failed:
        first = failed[0]
        file = f"{folder / first.file} at batch {first.items}"
        if first.error <= first.tolerance:
            decisions = f"{first.decisions_differ} of {first.decisions}"
            raise DynbenchError(f"{file} decides otherwise than expected: {decisions} decisions differ")
        raise DynbenchError(f"{file} answers otherwise than expected, by {first.error:.2g} of the largest value")
