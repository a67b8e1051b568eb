"""What a reader needs to judge the results: doubts, gaps, the machine, where models come from, how to do it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dynbench.analysis.formatting import bytes_
from dynbench.report.columns import COLUMNS, Column
from dynbench.report.tables import Block, Row, Section, Table, make_table
from dynbench.report.values import words
from dynbench.store.jsonable import to_table
from dynbench.store.lock import is_written
from dynbench.store.quantities import quantities
from dynbench.store.run import LOG, Run
from dynbench.store.schema import Cell, Manifest, Warning_, WorkloadInfo
from dynbench.unavailable import Unavailable

MOST_WARNINGS = 8  # rows shown at once; more are folded away behind one row per kind
MOST_REASONS = 3
PERCENTAGE = re.compile(r"\d+(?:\.\d+)?%")
CAUTIONS = {"recall|from memory": "recalled, not checked", "second-hand": "second-hand", "reconstruct": "reconstructed"}
ALWAYS = [
    (
        "other days, machines and processes",
        "All rounds come from one run: its intervals do not cover what differs from one run to the next.",
    ),
    (
        "queueing",
        "Load is a closed loop: the next batch is issued when the last is done. Under arrivals at a rate of their own, "
        "waiting times would be added.",
    ),
]
WAYS = (
    "As written: a network as its code stands, every layer called from Python in eager PyTorch. "
    "Deployed: the same network in the fastest of the ways that were tried here, compared only with static networks in "
    "their own fastest ways. "
    "The tournament finds that way: before a batch size is measured, every way is timed on a few batches, and the "
    "fastest one of each network is then measured with all the others, in the same rounds."
)


def background_sections(run: Run, absent: Sequence[tuple[str, str]], *, page: bool = False) -> list[Section]:
    """Warnings, what was not measured, environment, provenance, reproduction.

    Args:
        run: what was measured.
        absent: figures that are not there: (what, why).
        page: it is about one workload of several, and the machine and the command are told where all of them are.
    """
    infos = list(run.manifest.workloads.values())
    mine: dict[str, list[Cell]] = {}
    for cell in run.cells:
        mine.setdefault(cell.workload, []).append(cell)
    models = [block for info in infos for block in _provenance(info, mine.get(info.name, []))]
    provenance = Section(
        "provenance",
        "Models and inputs",
        "Where each model, its weights, its inputs and the published figures come from.",
        models or [Block(text=["No workload could be prepared."])],
    )
    found = [warnings_section(run), not_measured_section(run, absent)]
    if page:
        return [*found, provenance]
    return [*found, environment_section(run), provenance, reproduce_section(run)]


def warnings_section(run: Run, *, every: bool = True) -> Section:
    """Doubts about results; `every`: each one beneath the kinds of them."""
    blocks = _warnings(run)
    return Section(
        "warnings", "Warnings", "Doubts about results, and what would remove them.", blocks if every else blocks[:1]
    )


def not_measured_section(run: Run, absent: Sequence[tuple[str, str]]) -> Section:
    """What there is no number or figure of, and why."""
    table = _pairs("not-measured", "Not measured", "what", "why", _not_measured(run, absent))
    return Section(
        "not-measured", "Not measured", "What a reader may miss, and why it is not there.", [Block(table=table)]
    )


def environment_section(run: Run) -> Section:
    """The machine, the software, the process and the repository."""
    return Section("environment", "Environment", "", _environment(run))


def reproduce_section(run: Run) -> Section:
    """The commands that make this run again."""
    return Section("reproduce", "How to reproduce this run", "", _reproduce(run.manifest))


def legend(tables: Iterable[Table]) -> Section:
    """Explains every column that has a value in one of the tables."""
    defined = {c.key: c for t in tables for c in t.filled if c.definition}
    head = [
        Column("header", "column", kind="name"),
        Column("unit", "unit", kind="text"),
        Column("definition", "what it is", kind="prose"),
        Column("is_not", "what it is not", kind="prose"),
    ]
    rows: list[Row] = [
        {
            "header": words(c.header),
            "unit": words(c.unit),
            "definition": words(c.definition),
            "is_not": words(c.is_not),
        }
        for c in defined.values()
    ]
    text = [
        "n/a: it could not be measured; the footnote says why. A dash: it does not apply. Columns that are the same in "
        "every row are named once above their table.",
        "Nothing here is an estimate, except the 'rest' of the losses and break-even keep-rates, which are worked "
        "out from measurements as they say.",
    ]
    if "deployed_speedup" in defined:
        text.insert(0, WAYS)
    blocks = [Block(text=text)]
    if rows:
        blocks.append(Block(table=make_table("legend", "Columns", head, rows)))
    return Section("legend", "How to read this report", "", blocks)


def _pairs(key: str, title: str, first: str, second: str, pairs: Sequence[tuple[str, str]]) -> Table:
    rows: list[Row] = [{first: words(a), second: words(b)} for a, b in pairs]
    return make_table(key, title, [COLUMNS[first], COLUMNS[second]], rows)


def _warnings(run: Run) -> list[Block]:
    found = [("the whole run", w) for w in (*run.warnings, *run.manifest.warnings)]
    titles = {i.name: i.title for i in run.manifest.workloads.values()}
    found += [(_place(c, titles), w) for c in run.cells for w in c.warnings]
    if not found:
        return [Block(text=["There are none."])]
    rows = [_warning(w, _joined(places, MOST_REASONS)) for w, places in _merged(found).items()]
    keys = [COLUMNS[k] for k in ("id", "concerns", "warning", "remedy")]
    if len(rows) <= MOST_WARNINGS:
        return [Block(table=make_table("warnings", "Warnings", keys, rows))]
    kinds: dict[tuple[str, str], list[tuple[str, Warning_]]] = {}
    for place, w in found:
        kinds.setdefault((w.id, w.remedy), []).append((place, w))
    short = [
        _warning(some[0][1], f"{len({p for p, _ in some})} results, such as {some[0][0]}")
        if len(some) > 1
        else _warning(some[0][1], some[0][0])
        for some in kinds.values()
    ]
    return [
        Block(table=make_table("warnings", "Warnings", keys, short)),
        Block("Every warning", table=make_table("warnings each", "Every warning", keys, rows), folded=True),
    ]


def _merged(found: Sequence[tuple[str, Warning_]]) -> dict[Warning_, list[str]]:
    """The places of each warning; those that differ in percentages alone are one, which says from where to where."""
    alike: dict[tuple[str, str, str], list[tuple[str, Warning_]]] = {}
    for place, w in found:
        alike.setdefault((w.id, PERCENTAGE.sub("%", w.text), w.remedy), []).append((place, w))
    merged: dict[Warning_, list[str]] = {}
    for some in alike.values():
        values = list(zip(*(PERCENTAGE.findall(w.text) for _, w in some), strict=True))
        first, text = some[0][1], some[0][1].text
        if len(some) > 1:
            between = PERCENTAGE.split(text)
            text = between[0] + "".join(_range(v) + after for v, after in zip(values, between[1:], strict=True))
        merged[first.model_copy(update={"text": text})] = [place for place, _ in some]
    return merged


def _range(percentages: Sequence[str]) -> str:
    """'9%', or '9% to 17%'."""
    ordered = sorted(set(percentages), key=lambda p: float(p.removesuffix("%")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _warning(w: Warning_, concerns: str) -> Row:
    return {"id": words(w.id), "concerns": words(concerns), "warning": words(w.text), "remedy": words(w.remedy)}


def _place(cell: Cell, titles: Mapping[str, str]) -> str:
    title = titles.get(cell.workload, cell.workload)
    return f"{title}, {cell.decisions.label}, batch {cell.batch_size}, {cell.arm.title}"


def _joined(parts: Sequence[str], most: int) -> str:
    different = list(dict.fromkeys(parts))
    more = f"; and {len(different) - most} more" if len(different) > most else ""
    return "; ".join(different[:most]) + more


def _not_measured(run: Run, absent: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    manifest = run.manifest
    found = [(n.what, n.why) for n in manifest.not_measured]
    found += _unreached(run)
    done = [c for c in run.cells if c.status == "ok"]
    for quantity in quantities(manifest.workloads.values()):
        if "not measured" not in quantity.places:
            continue
        reasons = [v.unavailable for v in map(quantity.of, done) if isinstance(v, Unavailable)]
        if reasons:
            where = "" if len(reasons) == len(done) else f" ({len(reasons)} of {len(done)} cells)"
            found.append((f"{quantity.name}{where}", _joined(reasons, MOST_REASONS)))
    for info in manifest.workloads.values():
        if not info.accuracies:
            why = "weights are untrained" if info.weights is None else "the run ended before it, or it failed"
            found.append((f"accuracy of {info.title}", why))
        for name, accuracy in info.accuracies.items():
            if isinstance(accuracy.value, Unavailable):
                found.append((f"accuracy of {info.title}: {name}", accuracy.value.unavailable))
    return [*found, *_other_dtypes(run), *absent, *ALWAYS]


def _other_dtypes(run: Run) -> list[tuple[str, str]]:
    """That a processor has units for bfloat16, where every network was measured in float32."""
    units = run.manifest.hardware.get("bfloat16_units")
    if not isinstance(units, list) or not units or {c.dtype for c in run.cells} != {"float32"}:
        return []
    why = (
        f"this run is in float32; the processor multiplies bfloat16 in hardware ({', '.join(map(str, units))}), in "
        "which networks may be several times as fast; --dtype bfloat16 measures that"
    )
    return [("bfloat16", why)]


def _unreached(run: Run) -> list[tuple[str, str]]:
    """Workloads, and batch sizes they ask for, without a single cell."""
    why = {
        "interrupted": "the run was interrupted before",
        "running": "the run had not come that far" if is_written(run.path) else "the run was cut off before",
        "complete": "no cell was stored",
    }[run.manifest.status]
    sizes: dict[str, set[int]] = {}  # by workload, outside the sweep
    for cell in run.cells:
        sizes.setdefault(cell.workload, set()).update([] if cell.decisions.sweep else [cell.batch_size])
    found = []
    for info in run.manifest.workloads.values():
        if info.name not in sizes:
            found.append((f"all of {info.title}", why))
        elif lacking := [b for b in _asked_sizes(run.manifest, info.name) if b not in sizes[info.name]]:
            found.append((f"{info.title} at batch {', '.join(map(str, lacking))}", why))
    return found


def _asked_sizes(manifest: Manifest, workload: str) -> list[int]:
    asked = _inside(manifest.spec, "options", "batch_sizes")
    asked = asked or _inside(manifest.spec, "workloads", workload, "run", "batch_sizes")
    return [b for b in asked if isinstance(b, int)] if isinstance(asked, list) else []


def _inside(table: object, *keys: str) -> object:
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table


def _environment(run: Run) -> list[Block]:
    manifest = run.manifest
    parts = {
        "Hardware": manifest.hardware,
        "Software": manifest.software,
        "Process": {**manifest.environment, **_printed(run)},
        "Repository": manifest.git,
    }
    return [
        Block(name, table=_pairs(f"environment {name}", name, "fact", "value", list(facts(part))))
        for name, part in parts.items()
        if part
    ] or [Block(text=["Nothing is known about the machine."])]


def _printed(run: Run) -> dict[str, object]:
    """Where to read what models and libraries printed while they were measured, if they did."""
    log = run.path / LOG
    size = log.stat().st_size if log.is_file() and not log.is_symlink() else 0
    return {"printed while measuring": f"{bytes_(size)}, in {LOG}"} if size else {}


def facts(table: Mapping[str, object], above: str = "") -> Iterator[tuple[str, str]]:
    """A nested table as (name, value) pairs, units made readable."""
    for key, value in table.items():
        name = above + (key if key.isupper() else key.replace("_", " "))  # environment variables keep their names
        if isinstance(value, Mapping):
            yield from facts(value, f"{name}: ") if value else ((name, "none"),)
        else:
            yield _named(name, value), _fact(name, value)


def _named(name: str, value: object) -> str:
    return re.sub(r" ?\bbytes\b", "", name).strip() if _is_size(name, value) else name


def _is_size(name: str, value: object) -> bool:
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return whole and "bytes" in name.split(":")[0].split() and "per s" not in name


def _fact(name: str, value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and _is_size(name, value):
        return bytes_(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        return f"{len(value)} entries, in the manifest"
    if isinstance(value, list):
        return ", ".join(_fact(name, v) for v in value) or "none"
    return str(value) or "–"


def _provenance(info: WorkloadInfo, cells: Sequence[Cell]) -> Iterator[Block]:
    arguments = ", ".join(f"{k}={v}" for k, v in info.model_args.items())
    points = ", ".join(f"{n} {kind}" for kind, n in info.points.items())
    cautions = [
        f"[{label}]" for pattern, label in CAUTIONS.items() if re.search(pattern, info.provenance, re.IGNORECASE)
    ]
    rows = [
        ("paper", info.paper or "none named"),
        ("model", f"{info.model}({arguments})"),
        ("made after", " ".join([*cautions, info.provenance])),
        ("decision points", points or "none"),
        ("inputs", info.inputs),
        ("stream", f"{info.stream_items} items, hash {info.stream_hash}"),
        ("weights", info.weights or ("no file" if info.may_be_trained else "none: untrained")),
        ("weights sha256", info.weights_sha256 or "–"),
        *((f"trace hash: {label}", value) for label, value in info.trace_hashes.items()),
    ]
    published = {c.decisions.label: c.decisions.provenance for c in cells}
    rows += [(f"rates: {label}", text) for label, text in published.items() if text]
    rows += [(f"{c.status} claim", f"{c.metric}: {c.value:g} {c.unit}") for c in info.claims if c.status != "verified"]
    yield Block(info.title, table=_pairs(f"provenance {info.name}", "Model and inputs", "fact", "value", rows))
    if info.card:
        card = list(facts(info.card))
        yield Block("Model card", table=_pairs(f"card {info.name}", "Model card", "fact", "value", card), folded=True)


def _reproduce(manifest: Manifest) -> list[Block]:
    versions = {k: str(v) for k, v in manifest.software.items()}
    packages = [f"{k}=={v}" for k, v in versions.items() if k not in ("python", "system") and v != "not installed"]
    lines = []
    commit = manifest.git.get("commit")
    if isinstance(commit, str):
        lines.append(f"git checkout {shlex.quote(commit)}")
    if packages:
        lines.append("python -m pip install " + shlex.join(packages))
    lines.append(shlex.join(manifest.command) or "dynbench run")
    text = [f"dynbench {manifest.dynbench_version}, Python {versions.get('python', 'unknown')}, seed {manifest.seed}."]
    if manifest.git.get("dirty"):
        text.append("The working tree had changes that were not committed: this commit alone is not what ran.")
    if others := {str(s.git["commit"]) for s in manifest.resumed if "commit" in s.git} - {str(commit)}:
        text.append(f"A part was measured later, with {' and '.join(sorted(others))}.")
    text.append(
        "Inputs, weights and decisions must come out with the hashes under Models and inputs; times will differ as "
        "much as the machine does. Files named in the command are meant from the folder it was given in."
    )
    spec = _json(to_table(manifest)["spec"])
    return [
        Block(text=text, code="\n".join(lines)),
        Block("All options and workloads, as they were read", code=spec, folded=True),
    ]


def _json(value: object, levels: int = 3, indent: str = "") -> str:
    """JSON with a line for each entry of the outer tables; what is within is on one line."""
    if not isinstance(value, Mapping) or not value or not levels:
        return json.dumps(value, ensure_ascii=False)
    inner = f"{indent} "
    lines = [f"{inner}{json.dumps(k, ensure_ascii=False)}: {_json(v, levels - 1, inner)}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
