"""Which of the workloads that come with dynbench are a graph: for any batch and for a single item, proved.

`python -m bench.graphs [NAME ...]` prints one JSON line per workload as it is found, then the count.
Each is made in a process of its own, one after the other: some take much memory. With `--out FILE` a later call goes on
where an earlier one ended. The table of all is in reports/2026-11-28-graphs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GOAL = 55  # workloads that are to be a graph


def main() -> int:
    """Finds it out for the workloads asked for, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench.graphs", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="NAME", help="only these [default: all]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a line for each as it is found; go on there")
    parser.add_argument("--limit", type=float, default=600.0, metavar="S", help="for each [default: 600]")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of data sets, as of `dynbench run`")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(found_out(options.one, options.data)))
        return 0
    from dynbench.paths import workload_files

    names = options.workloads or sorted(workload_files())
    lines = _read(options.out)
    for name in names:
        if name in lines:
            continue
        lines[name] = line = _in_process(name, options.limit, options.data)
        print(json.dumps(line), flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    proved = [line for line in lines.values() if line["graph"]]
    print(f"{len(proved)} of {len(lines)} workloads are a graph, proved; goal: at least {GOAL} of all")
    for line in lines.values():
        if not line["graph"]:
            print(f"  {line['workload']}: {line['reason']}")
    return 0


def _read(file: Path | None) -> dict[str, dict[str, Any]]:
    """Lines of an earlier call, by workload."""
    if file is None or not file.exists():
        return {}
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return {line["workload"]: line for line in lines}


def _in_process(name: str, limit_s: float, data: Path | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.graphs", "--one", name, *(() if data is None else ("--data", str(data)))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return {"workload": name, "graph": False, "reason": f"not done within {limit_s:.0f} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"workload": name, "graph": False, "reason": last}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def found_out(name: str, data: Path | None = None) -> dict[str, Any]:
    """One workload: whether it is a graph, how often it was compared, CPU seconds, peak memory."""
    import torch

    from dynbench.errors import DynbenchError
    from dynbench.experiment import Options, load_specs
    from dynbench.experiment.build import Source, prepare
    from dynbench.experiment.graphs import proved_dynamic
    from dynbench.store.schema import Decisions

    torch.set_num_threads(1)
    begin = time.process_time()
    found: dict[str, Any] = {"workload": name, "graph": False}
    try:
        (spec,) = load_specs([name])
        if spec.model_kind == "opaque":
            return found | {"reason": "it is opaque: its network shows no decision points"}
        p = prepare(spec, Options(data_dir=data))
        prepared = time.process_time()
        source = Source(Decisions(source="learned", label="learned"))
        with torch.inference_mode():
            proofs = [proved_dynamic(p, source, single=single, replay=False) for single in (True, False)]
    except DynbenchError as e:
        return found | {"reason": str(e), "cpu_s": round(time.process_time() - begin, 1)}
    nodes = [node for proof in proofs for node in _nodes(proof.graph.model.graph)]
    racing = sum(
        n.op_type == "ScatterND" and any(a.name == "reduction" and a.s != b"none" for a in n.attribute) for n in nodes
    )
    return found | {
        "graph": racing == 0,
        "reason": f"{racing} ScatterND add to rows that may occur again" if racing else "",
        "comparisons": sum(len(proof.checks) for proof in proofs),
        "nodes": len(nodes),
        "cpu_s": round(time.process_time() - begin, 1),
        "graph_cpu_s": round(time.process_time() - prepared, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _nodes(graph: Any) -> list[Any]:
    """Of a graph and its branches."""
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found


if __name__ == "__main__":
    sys.exit(main())
