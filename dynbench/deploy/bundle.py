"""A bundle: a folder with graphs, inputs, the answers and decisions that are right for them, and a manifest.

It is read, and proved again, without torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from dynbench.analysis.rounding import by_rounding
from dynbench.errors import UserError
from dynbench.store.jsonable import first_fault

if TYPE_CHECKING:
    import onnx

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
INPUTS, EXPECTED = "inputs.npy", "expected.npz"
LEAST_OPSET = 13  # since when the axes of Squeeze, Unsqueeze and Split are inputs, as these graphs have them
VECTORS = ("avx", "avx2", "avx512f", "asimd", "sve")
SIZES = (1, 2, 7)  # of the batches that a graph is checked with, and all inputs at once


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decided(_Record):
    """How the decisions of one point come out of a graph."""

    point: str
    sizes: list[PositiveInt] = Field(description="of the coordinates below the sample: tokens, steps")
    decision: str = Field(description="name of the output with what was decided")
    items: str | list[int] = Field(description="name of the output with whom it was decided for, or always these")
    choices: PositiveInt = Field(default=1, description="decisions that one row holds: the parts that it lists")

    @property
    def label(self) -> str:
        """What the arrays of `expected.npz` are called by."""
        return self.point + "".join(f"/{size}" for size in self.sizes)


class Machine(_Record):
    """What a graph was optimised for: it is neither right nor fast on another one."""

    architecture: str
    vectors: list[str]  # which sets of vector instructions it has: blocks of channels depend on them
    onnxruntime: str

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        try:
            known = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        except OSError:
            known = []
        vectors = [name for name in VECTORS if name in known]
        return cls(architecture=platform.machine(), vectors=vectors, onnxruntime=version("onnxruntime"))


class Proof(_Record):
    """A comparison with `per_sample` that a graph passed before it was written."""

    decisions: str  # 'learned', 'none', 'all', 'one', 'replayed'; of a static network '-'
    items: int
    error: float = Field(ge=0)


class GraphFile(_Record):
    """One graph of a bundle.

    `flops_per_item` is what it executed for the stored inputs, counted from ONNX Runtime's record; None: unknown.
    """

    file: str
    network: str  # 'dynamic', or a baseline's name
    optimised_for: Machine | None = (
        None  # as ONNX Runtime runs it fastest there, and to be loaded as it is; None: for any
    )
    single: bool = False  # it takes exactly one item
    answers: list[str] = Field(min_length=1)
    decisions: list[Decided] = Field(default_factory=list)
    flops_per_item: float | None = None
    proofs: list[Proof] = Field(min_length=1)


class Given(_Record):
    """Decisions that a graph takes as an input."""

    input: str
    label: str = Field(description="of the arrays in `expected.npz`: 'decision/LABEL'")
    rows: PositiveInt = Field(default=1, description="of the array, for each item")


class Control(_Record):
    """The dynamic network with decisions that are known ahead: only in bundles that are made to be measured."""

    file: str
    single: bool = False
    answers: list[str] = Field(min_length=1)
    given: list[Given] = Field(min_length=1)
    alike: bool = Field(description="its answers are those of the network; else weights of what is chosen are made up")
    flops_per_item: float | None = None


class Manifest(_Record):
    """`manifest.json` of a bundle."""

    schema_version: Literal[1] = 1
    dynbench_version: str
    workload: str
    title: str
    model: str
    weights: str | None = None
    weights_sha256: str | None = None
    opset: int
    ir_version: int
    input_name: str = "x"
    input_dtype: str
    input_item_shape: list[int]
    items: int = Field(description="of the stored inputs", ge=1)
    items_left_out: int = 0  # of the workload's stream: what is decided for them is within rounding
    tolerance: float = Field(description="of an answer's largest value", gt=0, le=1e-3)
    batch_scope: bool = False  # decisions depend on who is in the batch: answers are right for all inputs at once only
    primary: str | None = None  # name of the primary baseline
    required_flops_per_item: float | None = None  # what the decisions for these inputs ask for, gates included
    required_region_flops_per_item: float | None = None  # the same without gates and heads
    path_label: str = ""  # what the depth of a path counts: 'bodies run of 17'; '': the network has no paths
    path_depths: list[float] = Field(default_factory=list)  # of each stored input
    graphs: list[GraphFile]
    left_out: dict[str, str] = Field(default_factory=dict)  # what could not be a graph, and why
    controls: list[Control] = Field(default_factory=list)
    no_controls: str | None = None  # why there are none in a bundle that is made to be measured
    software: dict[str, str]
    sha256: dict[str, str]  # of every other file


@dataclass(frozen=True)
class Checked:
    """One comparison of a graph with what is expected.

    Attributes:
        file: of the graph.
        items: of the batch; 1 for a graph for a single item, which got all of them one after the other.
        error: largest difference of the answers, relative to the largest value; NaN where they hold NaN. Inputs for
            which a decision differs are left out: another answer is then right.
        decisions: how many are expected.
        decisions_differ: how many differ, or were taken for other items.
        tolerance: of the bundle.
    """

    file: str
    items: int
    error: float
    decisions: int
    decisions_differ: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether it is the same network; NaN is not. Few decisions may differ: scores can be equal up to rounding."""
        return self.error <= self.tolerance and by_rounding(self.decisions_differ, self.decisions)


def sha256(content: bytes) -> str:
    """Content hash, hex."""
    return hashlib.sha256(content).hexdigest()


def check(folder: Path, left_out: Callable[[str], None] = lambda _: None) -> Iterator[Checked]:
    """Proves a bundle again: files are as they were written, and graphs give the answers and decisions expected.

    Args:
        folder: of the bundle.
        left_out: is called with the name of each graph that is for another kind of machine, and so is not run.

    Raises:
        UserError: there is no bundle, a file is missing, malformed or was changed, or a package is not installed.
    """
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed, which runs the graphs of a bundle: pip install {package}")
    manifest, files = read(folder)
    inputs = _array(folder / INPUTS, files[INPUTS])
    expected = _arrays(folder / EXPECTED, files[EXPECTED])
    for name, values in expected.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise UserError(f"{folder / EXPECTED}: {name!r} holds NaN, which no answer can be compared with")
    _check_inputs(folder / INPUTS, inputs, manifest)
    for graph in manifest.graphs:
        if graph.optimised_for not in (None, Machine.here()):
            left_out(graph.file)
            continue
        model = _model(folder / graph.file, files[graph.file], graph, manifest)
        yield from _compare(folder / graph.file, model, graph, manifest, inputs, expected)


def read(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and the content of every file that it lists, as it was written.

    Raises:
        UserError: there is no bundle, or a file is missing, malformed or was changed.
    """
    place = folder / MANIFEST
    if not place.is_file():
        raise UserError(f"{folder} is no bundle: there is no {MANIFEST}")
    try:
        content = place.read_bytes()
        _refuse_newer(content, place)
        manifest = Manifest.model_validate_json(content)
    except ValidationError as e:
        raise UserError(f"{place} is no manifest of a bundle: {first_fault(e)}") from e
    except OSError as e:
        raise UserError(f"cannot read {place}: {e.strerror or e}") from e
    files = {name: _content(folder, name, right) for name, right in manifest.sha256.items()}
    if len({graph.file for graph in manifest.graphs}) < len(manifest.graphs):
        raise UserError(f"{place} lists a graph twice")
    for name in (INPUTS, EXPECTED, *(g.file for g in manifest.graphs), *(c.file for c in manifest.controls)):
        if name not in files:
            raise UserError(f"{place} has no hash of {name!r}, so nobody knows whether it was changed")
    if all(graph.optimised_for for graph in manifest.graphs):
        raise UserError(f"{place} lists no graph that runs on every machine")
    return manifest, files


def _refuse_newer(content: bytes, place: Path) -> None:
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{place} is no manifest of a bundle: not JSON: {e}") from e
    found = table.get("schema_version") if isinstance(table, dict) else None
    if isinstance(found, int) and found > SCHEMA_VERSION:
        raise UserError(
            f"{place} was written by a newer dynbench: it has schema version {found}, this one reads {SCHEMA_VERSION}"
        )


def _content(folder: Path, name: str, right: str) -> bytes:
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"{folder / MANIFEST}: {name!r} is no name of a file beside it")
    place = folder / name
    try:
        if place.is_symlink() or not place.is_file():
            raise UserError(f"{place} is missing, or no ordinary file")
        content = place.read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {place}: {e.strerror or e}") from e
    if sha256(content) != right:
        raise UserError(f"{place} was changed: its sha256 is not the one in {MANIFEST}")
    return content


def _array(place: Path, content: bytes) -> np.ndarray:
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as e:  # whatever numpy raises for damaged content
        raise UserError(f"{place} is no array: {_line(e)}") from e
    if not isinstance(found, np.ndarray):
        raise UserError(f"{place} holds several arrays, not one")
    return found


def _arrays(place: Path, content: bytes) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except Exception as e:  # whatever numpy, zipfile and zlib raise for damaged content
        raise UserError(f"{place} holds no arrays: {_line(e)}") from e


def _check_inputs(place: Path, inputs: np.ndarray, manifest: Manifest) -> None:
    wanted = (manifest.input_dtype, (manifest.items, *manifest.input_item_shape))
    if (str(inputs.dtype), inputs.shape) != wanted:
        raise UserError(
            f"{place} holds {inputs.dtype} {list(inputs.shape)}; {MANIFEST} says {wanted[0]} {list(wanted[1])}"
        )


def _model(place: Path, content: bytes, graph: GraphFile, manifest: Manifest) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(content)
    except DecodeError as e:
        raise UserError(f"{place} is no ONNX graph: {e}") from e
    if _has_weights_elsewhere(model.graph):
        raise UserError(f"{place} takes weights from another file; those of a bundle are in the graph itself")
    opsets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    if graph.optimised_for is None and (others := sorted(set(opsets) - {"ai.onnx"})):
        raise UserError(f"{place} needs operators of {others[0]!r}; bundles have those of ONNX itself only")
    opset = opsets.get("ai.onnx", 0)
    if opset < LEAST_OPSET:
        raise UserError(f"{place} has opset {opset}; bundles need {LEAST_OPSET} or newer")
    if opset != manifest.opset:
        raise UserError(f"{place} has opset {opset}; {MANIFEST} says {manifest.opset}")
    return model


def _has_weights_elsewhere(graph: onnx.GraphProto) -> bool:
    """Whether a weight is to be read from another file, those inside branches included."""
    attributes = [a for node in graph.node for a in node.attribute]
    tensors = [*graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
    inner = [a.g for a in attributes if a.HasField("g")]
    return any(t.external_data for t in tensors) or any(map(_has_weights_elsewhere, inner))


def _compare(
    place: Path,
    model: onnx.ModelProto,
    graph: GraphFile,
    manifest: Manifest,
    inputs: np.ndarray,
    expected: dict[str, np.ndarray],
) -> Iterator[Checked]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if graph.optimised_for is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise UserError(f"ONNX Runtime does not load {place}: {_line(e)}") from e
    known = {output.name for output in session.get_outputs()}
    outputs = [
        *graph.answers,
        *(d.decision for d in graph.decisions),
        *(d.items for d in graph.decisions if isinstance(d.items, str)),
    ]
    if missing := next((name for name in outputs if name not in known), None):
        raise UserError(f"{place} has no output {missing!r}, which {MANIFEST} names")
    takes = {value.name for value in session.get_inputs()} & {manifest.input_name}
    for n in _sizes(graph, manifest):
        batches = [inputs[i : i + 1] for i in range(n)] if graph.single else [inputs[:n]]
        try:
            runs = [dict(zip(outputs, session.run(outputs, dict.fromkeys(takes, x)), strict=True)) for x in batches]
        except Exception as e:
            raise UserError(f"ONNX Runtime fails to run {place} on {n} items: {_line(e)}") from e
        right = {name: _expected(expected, f"{graph.network}/{name}", manifest.items) for name in graph.answers}
        found = {name: np.concatenate([run[name] for run in runs]) for name in graph.answers}
        wrong = [_wrong(d, runs, expected, n, manifest) for d in graph.decisions]
        same = ~np.any([w.reshape(n, -1).any(axis=1) for w in wrong], axis=0) if wrong else np.ones(n, dtype=bool)
        error = max((_error(found[name], value[:n], same) for name, value in right.items()), key=_nan_last)
        decisions = sum(
            d.choices * int(expected[f"reached/{d.label}"][: len(w)].sum())
            for d, w in zip(graph.decisions, wrong, strict=True)
        )
        size = 1 if graph.single else n
        yield Checked(graph.file, size, error, decisions, sum(int(w.sum()) for w in wrong), manifest.tolerance)


def _sizes(graph: GraphFile, manifest: Manifest) -> list[int]:
    """How many items a graph is checked with; one for a single item gets them one after the other."""
    if graph.single:
        return [] if manifest.batch_scope and manifest.items > 1 else [manifest.items]
    few = () if manifest.batch_scope else SIZES
    return sorted({size for size in few if size < manifest.items} | {manifest.items})


def _nan_last(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _expected(expected: dict[str, np.ndarray], name: str, rows: int) -> np.ndarray:
    found = expected.get(name)
    if found is None or not found.ndim or len(found) != rows:
        raise UserError(f"{EXPECTED} has no {name!r} with {rows} rows")
    return found


def _error(found: np.ndarray, right: np.ndarray, same: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinities must be equal, and NaN equals nothing.

    Args:
        found: answers [n, ...].
        right: [n, ...].
        same: [n] bool: which are to be compared.
    """
    if found.shape != right.shape or found.dtype != right.dtype:
        return math.inf
    found, right = found[same], right[same]
    if np.isnan(found).any() or np.isnan(right).any():
        return math.nan
    if found.dtype.kind != "f":
        return 0.0 if np.array_equal(found, right) else math.inf
    finite = np.isfinite(right)
    if not np.array_equal(found[~finite], right[~finite]) or not np.isfinite(found[finite]).all():
        return math.inf
    difference = np.abs(found[finite].astype(np.float64) - right[finite])
    return float(difference.max(initial=0.0) / max(np.abs(right[finite]).max(initial=0.0), 1e-30))


def _wrong(
    decided: Decided, runs: list[dict[str, np.ndarray]], expected: dict[str, np.ndarray], n: int, manifest: Manifest
) -> np.ndarray:
    """How many decisions in each row for the first n items are others than expected, or missing, or too many.

    `runs` are the outputs for all n at once, or for one item after the other.
    """
    per = math.prod(decided.sizes)
    table = _expected(expected, f"decision/{decided.label}", manifest.items * per)[: n * per]
    reached = _expected(expected, f"reached/{decided.label}", manifest.items * per)[: n * per]
    if reached.dtype != bool or reached.ndim != 1:
        raise UserError(f"{EXPECTED}: {f'reached/{decided.label}'!r} is no list of yes and no")
    if decided.choices > 1 and table.shape[1:] != (decided.choices,):
        raise UserError(
            f"{MANIFEST}: a row of 'decision/{decided.label}' holds {list(table.shape[1:])} values, not "
            f"{decided.choices} choices"
        )
    given = [run[decided.items] if isinstance(decided.items, str) else decided.items for run in runs]
    rows = np.concatenate([np.asarray(ids, dtype=np.int64).reshape(-1) + i * per for i, ids in enumerate(given)])
    value = np.concatenate([run[decided.decision].reshape(-1) for run in runs])
    within = not ((rows < 0) | (rows >= n * per)).any() and len(np.unique(rows)) == len(rows)
    if not within or value.size != len(rows) * math.prod(table.shape[1:]) or value.dtype != table.dtype:
        return np.full(n * per, decided.choices)
    asked = np.zeros(n * per, dtype=bool)
    asked[rows] = True
    wrong = decided.choices * (asked != reached)
    value = value.reshape(len(rows), *table.shape[1:])
    same = value == table[rows]
    if value.dtype.kind == "f":  # a weight or a place, not a choice
        same = np.abs(value - table[rows]) <= manifest.tolerance * max(np.abs(table).max(initial=0.0), 1e-30)
    differ = (~same.reshape(len(rows), -1).all(axis=1)).astype(int)
    if decided.choices > 1:
        missing = ~(table[rows][:, :, None] == value[:, None, :]).any(axis=2)
        differ = np.maximum(differ, missing.sum(axis=1))  # another order of the same is one
    wrong[rows] = np.maximum(wrong[rows], differ)
    return wrong


def _line(e: Exception) -> Any:
    return " ".join(str(e).split())
