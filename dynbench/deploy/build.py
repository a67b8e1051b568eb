"""From a workload to a bundle. Every graph is proved before it is written."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from dynbench.deploy.bundle import (
    EXPECTED,
    INPUTS,
    MANIFEST,
    Control,
    Decided,
    GraphFile,
    Machine,
    Manifest,
    Proof,
    sha256,
)
from dynbench.deploy.controls import Steady, known_ahead_controls
from dynbench.deploy.counted import flops_per_item
from dynbench.dynamic import Trace, points
from dynbench.errors import UserError
from dynbench.escape import terminal
from dynbench.experiment.alike import decided_alike, same_rows
from dynbench.experiment.build import Prepared, Source, prepare
from dynbench.experiment.build import sha256 as file_sha256
from dynbench.experiment.graphs import TOLERANCE, Proved, WrongGraph, proved_dynamic, proved_static, right_of
from dynbench.experiment.oracle import output_error
from dynbench.experiment.spec import Options, Workload
from dynbench.experiment.ways import dynamic_ways
from dynbench.experiment.weights import weight_files
from dynbench.files import make_folder, write_bytes
from dynbench.graph import OPSET, OPSETS, CannotTrace, Graph, Right, Session, opset_of
from dynbench.meters.required import PartCosts
from dynbench.paths import weights_path
from dynbench.reading import ordinary
from dynbench.scratch import make_scratch
from dynbench.store.schema import Arm, Decisions
from dynbench.strategies import Compaction
from dynbench.unavailable import Measured, Unavailable
from dynbench.version import __version__

README = """{title}, written by dynbench {version}.

run.py          runs it: needs numpy and onnxruntime
dynamic.onnx    any number of items; what is not decided for is not computed
single.onnx     one item at a time: faster there, as nothing is gathered
static*.onnx    the static networks it is compared with, for any number of items
inputs.npy      {items} items
*.here.onnx     the same as ONNX Runtime {onnxruntime} runs them fastest on the kind of machine that wrote them: to be
                loaded with optimisation disabled; not for other machines or versions. They answer and do not say what
                was decided, which takes a few percent
expected.npz    the answers and decisions that are right for them
manifest.json   names, shapes, exact work, and the hash of every file

`dynbench compile --check .` proves the graphs again.
"""


@dataclass(frozen=True)
class Written:
    """A bundle that was written.

    Attributes:
        folder: where.
        manifest: what is in it.
        bytes_by_file: how large each graph is.
    """

    folder: Path
    manifest: Manifest
    bytes_by_file: dict[str, int]


def compile_bundle(spec: Workload, out: Path, options: Options, opset: int = OPSET) -> Written:
    """Writes the bundle of a workload: its network with its own decisions, and its baselines.

    Args:
        spec: the workload.
        out: a folder that does not exist, is empty, or holds a bundle, which is replaced as a whole.
        options: of a run; inputs and batch sizes follow from them.
        opset: version of ONNX's operators.

    Raises:
        UserError: the network cannot be a graph, with the operator or the point that is in the way; or the folder
            cannot be written, or holds something else.
        WrongGraph: a graph answers or decides otherwise than the network.
    """
    _refuse_foreign(Path(os.path.abspath(out)))
    if opset not in OPSETS:
        raise UserError(f"opset {opset}: graphs are written in opset {OPSETS[0]} to {OPSETS[-1]}")
    if options.device != "cpu":
        raise UserError(f"bundles are made on the CPU, not on {options.device}")
    torch.set_num_threads(options.threads)
    return compile_prepared(prepare(spec, options), out, opset=opset)


def compile_prepared(p: Prepared, out: Path, *, controls: bool = False, opset: int = OPSET) -> Written:
    """The same of a workload that is prepared on the CPU already.

    Args:
        p: the workload.
        out: as of `compile_bundle`.
        controls: add what shows, beside the network, what deciding takes.
        opset: version of ONNX's operators.

    Raises:
        UserError: as `compile_bundle`.
        WrongGraph: as `compile_bundle`.
    """
    out = Path(os.path.abspath(out))  # '.' has no name beside which files can be laid
    with contextlib.suppress(OSError):  # it cannot be written, as will be told
        _settle(out)
    _refuse_foreign(out)
    if p.dtype_name != "float32":
        raise UserError(f"bundles are made of networks in float32, not in {p.dtype_name}")
    with torch.inference_mode():
        files, manifest = _contents(p, opset, controls=controls)
    make_folder(out.parent)
    aside = _folder_beside(out)
    try:
        for name, content in files.items():
            write_bytes(aside / name, content)
        write_bytes(aside / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
        _replace(out, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Written(out, manifest, {g.file: len(files[g.file]) for g in manifest.graphs})


def _refuse_foreign(out: Path) -> None:
    """Refuses a folder in which something would be lost.

    Raises:
        UserError: it is no folder, or holds other files than those of a bundle.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is no folder")
        inside = {path.name for path in out.iterdir()} if out.exists() else set()
    except OSError as e:
        raise UserError(f"cannot write to {out}: {e.strerror or e}") from e
    if not inside:
        return
    try:
        known = {MANIFEST, *Manifest.model_validate_json(ordinary(out / MANIFEST).read_bytes()).sha256}
    except (OSError, ValueError, UserError) as e:
        raise UserError(f"{out} holds something else than a bundle; choose another folder") from e
    if others := sorted(inside - known):
        raise UserError(f"{out} holds something else than a bundle ({others[0]}); choose another folder")


def _replace(out: Path, aside: Path) -> None:
    """Puts a complete folder in the place of an older bundle."""
    before = _before(out)
    try:
        aside.chmod(0o755)
        if out.exists():
            out.replace(before)
        aside.replace(out)
    except OSError as e:
        raise UserError(f"cannot write to {out}: {e.strerror or e}") from e
    finally:
        _settle(out)


def _before(out: Path) -> Path:
    """Where an older bundle is while a new one takes its place."""
    return out.with_name(f".dynbench-before-{out.name}")


def _settle(out: Path) -> None:
    """Puts an older bundle back, or removes it where a new one is in its place: a process may have ended in between."""
    before = _before(out)
    if before.exists() and not out.exists():
        before.replace(out)
    shutil.rmtree(before, ignore_errors=True)


def _folder_beside(out: Path) -> Path:
    """A new, empty folder on the same disk."""
    try:
        return make_scratch("bundle", out.parent, hidden=True)
    except OSError as e:
        raise UserError(f"cannot write to {out.parent}: {e.strerror or e}") from e


def _contents(p: Prepared, opset: int, *, controls: bool) -> tuple[dict[str, bytes], Manifest]:
    """All files but the manifest, and the manifest."""
    learned = Source(Decisions(source="learned", label="learned"))
    if isinstance(p.inputs, Tensor):  # first of all items: each smaller batch is the beginning of this
        right_of(p).of(p.items)
    proved = {
        "dynamic.onnx": _dynamic(p, learned, opset, single=False),
        "single.onnx": _dynamic(p, learned, opset, single=True),
    }
    graphs = {name: found.graph for name, found in proved.items()}
    x, answers, trace = _steady(p, graphs["dynamic.onnx"])
    entries = [_entry(p, x, trace, name, "dynamic", found) for name, found in proved.items()]
    expected = {f"dynamic/{name}": a.numpy() for name, a in zip(graphs["dynamic.onnx"].answers, answers, strict=True)}
    for decision in graphs["dynamic.onnx"].decisions:
        label = decision.key[0] + "".join(f"/{size}" for size in decision.key[1])
        value, reached = trace.reached_only().get(decision.key, (None, None))
        size = len(x) * int(np.prod(decision.key[1], dtype=int))
        blank = torch.zeros((size, *decision.shape), dtype=decision.dtype)
        expected[f"decision/{label}"] = (blank if value is None else value).numpy()
        expected[f"reached/{label}"] = (torch.zeros(size, dtype=torch.bool) if reached is None else reached).numpy()
    left_out: dict[str, str] = {}
    for baseline in p.spec.baselines or [p.spec.primary]:
        name = "static.onnx" if baseline.name == p.spec.primary.name else f"static-{_slug(baseline.name)}.onnx"
        if name in graphs:
            raise UserError(
                f"{p.spec.file}: baseline {baseline.name!r} and another one would both be {name}; rename one"
            )
        arm = Arm(kind="baseline", baseline=baseline.name, form=baseline.form)
        right_of(p, arm).of(p.items)
        try:
            static = proved_static(p, arm, opset)
        except WrongGraph:
            raise
        except CannotTrace as e:
            left_out[baseline.name] = str(e)
            continue
        graphs[name] = static.graph
        entries.append(_entry(p, x, trace, name, baseline.name, static))
        right = (right_of(p, arm) if x is p.inputs else Right(p.as_written(arm), x, static=True)).of(len(x))
        pairs = zip(static.graph.answers, right.answer, strict=True)
        expected |= {f"{baseline.name}/{answer}": a.numpy() for answer, a in pairs}
    files = {name: graph.model.SerializeToString() for name, graph in graphs.items()}
    for entry in list(entries):
        here = entry.file.replace(".onnx", ".here.onnx")
        if entry.network == "dynamic":
            _prove_answering(graphs[entry.file], x, answers)
        files[here] = graphs[entry.file].answering.here.SerializeToString()
        change = {"file": here, "optimised_for": Machine.here(), "decisions": []}
        entries.append(entry.model_copy(update=change))
    manifest = _manifest(p, trace, entries, left_out, graphs["dynamic.onnx"].model)
    if controls:
        labels = frozenset(d.label for entry in entries for d in entry.decisions)
        steady = Steady(x, answers, trace, manifest.required_region_flops_per_item, labels)
        found, known, why = _controls(p, learned, steady)
        files |= {name: graph.model.SerializeToString() for name, graph in known.items()}
        manifest = manifest.model_copy(update={"controls": found, "no_controls": why})
    files |= {INPUTS: _npy(x.numpy()), EXPECTED: _npz(expected)}
    files["run.py"] = (resources.files("dynbench.deploy") / "example.py").read_bytes()
    files["README.txt"] = README.format(
        title=terminal(p.spec.title), version=__version__, items=len(x), onnxruntime=version("onnxruntime")
    ).encode()
    hashes = {name: sha256(content) for name, content in sorted(files.items())}
    return files, manifest.model_copy(update={"sha256": hashes})


def _controls(p: Prepared, source: Source, steady: Steady) -> tuple[list[Control], dict[str, Graph], str | None]:
    strategy = next((arm.strategy for arm in dynamic_ways(p, source) if arm.control == "graph"), None)
    return known_ahead_controls(p, source, strategy or Compaction.name, steady)


def _steady(p: Prepared, graph: Graph) -> tuple[Tensor, list[Tensor], Trace]:
    """The items [n, ...] of the stream with which a bundle can be checked anywhere, with their answers and decisions.

    Where two scores are equal up to rounding, an optimiser or another number of threads decides otherwise. Such items
    are not stored. Of a network whose decisions depend on the batch all are.

    Raises:
        WrongGraph: more than a quarter of the items are so, or one is answered otherwise after the same decisions.
    """
    inputs = _inputs(p)
    answers, trace, _ = right_of(p).of(p.items)
    if p.batch_scope:
        return inputs, answers, trace
    steady = torch.ones(p.items, dtype=torch.bool)
    for fast, threads in ((True, 1), (True, 2), (False, 2)):
        got, said = Session(graph, fast=fast, threads=threads).run(inputs)
        decided = decided_alike(said, trace, TOLERANCE)
        for mine, right in zip(got, answers, strict=True):
            if wrong := int((decided & ~same_rows(mine, right, TOLERANCE)).sum()):
                raise WrongGraph(
                    f"the graph answers otherwise than per_sample for {wrong} of {p.items} items in one batch, on "
                    f"{threads} threads, after the same decisions"
                )
        steady &= decided
    if int(steady.sum()) < 0.75 * p.items:
        raise WrongGraph(
            f"{p.items - int(steady.sum())} of {p.items} items are decided otherwise by another number of threads or "
            "another order of sums; the network's decisions are within rounding"
        )
    if steady.all():
        return inputs, answers, trace
    kept = Right(p.model, inputs[steady]).of(int(steady.sum()))
    return inputs[steady], kept.answer, kept.taken


def _prove_answering(graph: Graph, x: Tensor, answers: list[Tensor]) -> None:
    """Compares what is left of a graph that does not say what it decided with what is right for the items x [n, ...].

    Raises:
        WrongGraph: it answers otherwise.
    """
    session = Session(graph, answers_only=True)
    batches = [x[i : i + 1] for i in range(len(x))] if graph.single else [x]
    got = [torch.cat(parts) for parts in zip(*(session.answer(session.feeds(b)) for b in batches), strict=True)]
    if not output_error(got, answers) <= TOLERANCE:
        what = "for a single item" if graph.single else "for any batch"
        raise WrongGraph(f"the graph {what} answers otherwise where it does not say what it decided")


def _inputs(p: Prepared) -> Tensor:
    """The stream [items, ...]; a model of several inputs was refused when its graph was made."""
    assert isinstance(p.inputs, Tensor)
    return p.inputs


def _dynamic(p: Prepared, source: Source, opset: int, *, single: bool) -> Proved:
    try:
        return proved_dynamic(p, source, single=single, replay=False, opset=opset)
    except WrongGraph:
        raise
    except CannotTrace as e:
        raise UserError(f"{p.spec.name} cannot be compiled: {e}") from e


def _entry(p: Prepared, x: Tensor, trace: Trace, file: str, network: str, proved: Proved) -> GraphFile:
    graph = proved.graph
    known = points(p.model)
    decisions = [
        Decided(
            point=d.key[0],
            sizes=list(d.key[1]),
            decision=d.value,
            items=d.ids if isinstance(d.ids, str) else list(d.ids),
            choices=known[d.key[0]].choices(d.shape),
        )
        for d in graph.decisions
    ]
    return GraphFile(
        file=file,
        network=network,
        single=graph.single,
        answers=list(graph.answers),
        decisions=decisions,
        flops_per_item=flops_per_item(graph, x, None if p.batch_scope else trace),
        proofs=[Proof(decisions=c.decisions, items=c.items, error=c.error) for c in proved.checks],
    )


def _manifest(
    p: Prepared,
    trace: Trace,
    graphs: list[GraphFile],
    left_out: dict[str, str],
    model: onnx.ModelProto,
) -> Manifest:
    costs = PartCosts(p.model, p.inputs[:1])
    required, (depths, path_label) = costs.required(trace), costs.path_depths(trace)
    named = [weights_path(p.spec.folder, f) for f in (p.spec.weights, *p.spec.weights_by_part.values()) if f]
    weights = [part for file in named for part in weight_files(file)]
    return Manifest(
        dynbench_version=__version__,
        workload=p.spec.name,
        title=p.spec.title,
        model=p.spec.model,
        weights=", ".join(w.name for w in weights) or None,
        weights_sha256=", ".join(file_sha256(w) for w in weights) or None,
        opset=opset_of(model),
        ir_version=model.ir_version,
        input_dtype=str(_inputs(p).numpy().dtype),
        input_item_shape=list(_inputs(p).shape[1:]),
        items=trace.items,
        items_left_out=p.items - trace.items,
        tolerance=TOLERANCE,
        batch_scope=p.batch_scope,
        primary=p.spec.primary.name if p.spec.primary.name not in left_out else None,
        required_flops_per_item=_per_item(required.total, trace.items),
        required_region_flops_per_item=_per_item(required.region, trace.items),
        path_label=path_label,
        path_depths=[float(depth) for depth in depths] if path_label else [],
        graphs=graphs,
        left_out=left_out,
        software={name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        sha256={},  # of files that are not there yet
    )


def _per_item(total: Measured | int, items: int) -> float | None:
    return None if isinstance(total, Unavailable) else float(total) / items


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:80]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()
