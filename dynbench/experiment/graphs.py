"""Networks of a workload as graphs that were proved before they are timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynbench.dynamic import Execution, Skip, Trace, points
from dynbench.dynamic.items import Arguments
from dynbench.engines import OnnxRuntime
from dynbench.experiment.build import Prepared, Source
from dynbench.experiment.oracle import output_error
from dynbench.graph import (
    OPSET,
    CannotTrace,
    Check,
    Graph,
    Right,
    Session,
    compiled,
    compiled_twice,
    prove,
    static_graph,
)
from dynbench.store.schema import Arm
from dynbench.strategies import Masking, PerSample

PROOF_SIZES = (1, 2, 7)  # of batches, besides those measured
TOLERANCE = 1e-4  # of the answer's largest value


@dataclass(frozen=True)
class Proved:
    """A graph, and the comparisons that it passed: of a static one with `decisions` '-'."""

    graph: Graph
    checks: list[Check]


class WrongGraph(CannotTrace):
    """A graph answers or decides otherwise than the network that it was made of."""


def session(p: Prepared, source: Source, arm: Arm, batch_size: int) -> Session:
    """The graph of an arm, proved and loaded; made once.

    Args:
        p: the workload.
        source: of the decisions.
        arm: of control 'graph'; in micro-batches it has the same graph as without.
        batch_size: at 1, a dynamic network gets a graph for a single item; so it does in micro-batches of 1.

    Raises:
        CannotTrace: the network cannot be a graph, or (`WrongGraph`) the graph answers otherwise than the network.
    """
    if p.dtype in OnnxRuntime().unknown_dtypes(p.device):
        raise CannotTrace(f"one graph: ONNX Runtime does not compute with {p.dtype} on {p.device.type}")
    batch_size, arm = arm.micro_batch or batch_size, arm.in_whole_batches
    dynamic = arm.baseline is None
    masking = dynamic and arm.strategy == Masking.name
    single, replay = dynamic and batch_size == 1 and not masking, dynamic and not arm.live
    key = (arm.baseline, arm.form, arm.without, masking, single, replay, source.decisions.label if dynamic else None)
    if key not in p.sessions and arm.without is not None:
        known = known_ahead(p, source, single=single)
        p.sessions[key] = Session(known, answers_only=True, threads=p.options.threads, device=p.device)
    if key not in p.sessions:
        if dynamic:
            proved = proved_dynamic(p, source, single=single, replay=replay, masking=masking)
        else:
            proved = proved_static(p, arm)
        p.sessions[key] = Session(proved.graph, answers_only=True, threads=p.options.threads, device=p.device)
    return p.sessions[key]


def known_ahead(p: Prepared, source: Source, *, single: bool) -> Graph:
    """The workload's network with decisions as inputs, and without what only decides: a control.

    Weights of what is chosen are made up, where there are some: its answers are then not those of the network.

    Raises:
        CannotTrace: it cannot be a graph.
    """
    return compiled(p.model, one_tensor(p), single=single, gates=False, rates=_known_rates(p, source))


def proved_dynamic(
    p: Prepared, source: Source, *, single: bool, replay: bool, masking: bool = False, opset: int = OPSET
) -> Proved:
    """The workload's network as a graph that was proved with its own decisions and with none, all and one.

    Args:
        p: the workload.
        source: of the decisions.
        single: for one item; else for any batch.
        replay: decisions are inputs.
        masking: everything is computed, for reference.
        opset: version of ONNX's operators.

    Raises:
        CannotTrace: as `session`.
    """
    rates, inputs, sizes = _known_rates(p, source), one_tensor(p), _sizes(p, single=single)
    if replay and not masking:
        graph = compiled(p.model, inputs, single=single, replay=True, rates=rates, opset=opset)
        return Proved(graph, _prove(p, graph, sizes))
    # its own decisions do not lead everywhere: the same graph is proved with decisions none, all and one
    graph, replaying = compiled_twice(p.model, inputs, single=single, rates=rates, masking=masking, opset=opset)
    if replay:
        return Proved(replaying, _prove(p, replaying, sizes))
    checks = _prove(p, graph, sizes)
    return Proved(graph, checks + _prove(p, replaying, tuple(n for n in sizes if n in PROOF_SIZES)))


def proved_static(p: Prepared, arm: Arm, opset: int = OPSET) -> Proved:
    """A baseline as a graph that was proved, with operators of a version.

    Raises:
        CannotTrace: as `session`.
    """
    inputs = one_tensor(p)
    graph = static_graph(p.as_written(arm), inputs, opset)
    return Proved(graph, _prove_static(graph, right_of(p, arm), inputs, _sizes(p, single=False)))


def right_of(p: Prepared, arm: Arm | None = None) -> Right:
    """What the graphs of a network are compared with; made once, so that no item is computed twice.

    Args:
        p: the workload.
        arm: of a baseline; None: the dynamic network.

    Raises:
        CannotTrace: it takes several inputs.
    """
    key = None if arm is None else (arm.baseline, arm.form)
    if key not in p.right_of_graphs:
        model = p.model if arm is None else p.as_written(arm)
        p.right_of_graphs[key] = Right(model, one_tensor(p), static=arm is not None, apart=p.batch_scope)
    return p.right_of_graphs[key]


def one_tensor(p: Prepared) -> Tensor:
    """The stream, where the network takes one tensor.

    Raises:
        CannotTrace: it takes several inputs.
    """
    if isinstance(p.inputs, Arguments):
        raise CannotTrace("the network takes several inputs, and a graph takes one tensor so far")
    return p.inputs


def _sizes(p: Prepared, *, single: bool) -> tuple[int, ...]:
    """Of the batches that a graph is proved with."""
    return (1,) if single else tuple(sorted({n for n in (*PROOF_SIZES, *p.batch_sizes) if n <= p.items}))


def _prove(p: Prepared, graph: Graph, sizes: tuple[int, ...]) -> list[Check]:
    checks = prove(p.model, graph, one_tensor(p), sizes, TOLERANCE, right_of(p))
    for check in checks:
        if not check.ok:
            answers = f"answers otherwise by {check.error:.2g} of the largest value"
            what = "decides otherwise" if check.error <= check.tolerance else answers
            raise WrongGraph(
                f"the graph {what} than per_sample, with {check.decisions} decisions at batch {check.items}"
            )
    return checks


def _prove_static(graph: Graph, right: Right, inputs: Tensor, sizes: tuple[int, ...]) -> list[Check]:
    run, checks = Session(graph, device=inputs.device), []
    right.of(max(sizes))  # the others are its beginnings
    for n in sizes:
        error = output_error(run.answer(run.feeds(inputs[:n])), right.of(n).answer)
        if not error <= TOLERANCE:
            raise WrongGraph(f"the graph answers otherwise by {error:.2g} of the largest value at batch {n}")
        checks.append(Check("-", n, error, TOLERANCE, same_path=True))
    return checks


def _known_rates(p: Prepared, source: Source) -> dict[str, float]:
    """`_rates`, worked out once."""
    label = source.decisions.label
    if label not in p.rates:
        p.rates[label] = _rates(p, source)
    return p.rates[label]


def _rates(p: Prepared, source: Source) -> dict[str, float]:
    """How often each Skip runs its body, by name, on other items than those measured; none where there are too few."""
    names = {name for name, point in points(p.model).items() if isinstance(point, Skip)}
    trace = _other_decisions(p, source) if names else None
    if trace is None:
        return {}
    known = {key[0]: entry for key, entry in trace.entries.items() if key[0] in names and bool(entry.reached.any())}
    return {name: float(entry.value[entry.reached].float().mean()) for name, entry in known.items()}


def _other_decisions(p: Prepared, source: Source) -> Trace | None:
    """Decisions as those of the source, but for other items or another seed; None: there are none."""
    if source.decisions.source == "replay":
        return None
    if source.decisions.source != "learned":
        return p.made_up(source, p.options.seed + 1, min(p.batch_sizes))
    if p.calibration is None:
        return None
    execution = Execution(PerSample(), record=True)
    with torch.inference_mode():
        execution.run(p.model, p.calibration)
    return execution.trace
