"""What to measure: a workload file, validated, and the options of a run."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from dynbench.errors import UserError, suggestion
from dynbench.experiment.hints import instead_of
from dynbench.names import (
    AUTO,
    DTYPES,
    ENGINE_NAMES,
    LOAD_NAMES,
    SOURCE_NAMES,
    STRATEGY_NAMES,
    TARGET_NAMES,
)
from dynbench.paths import workload_files
from dynbench.reading import read_toml
from dynbench.store.schema import Claim, Role, Variation

TASKS = ("classes", "tokens", "language", "pixels", "binary", "multilabel", "regression", "none")
DEFAULT_SUITE = ("skipnet38_digits", "idk_digits", "moe_text")
Rate = float | list[float | list[float]]  # for all; one per point; of an Exits or Loop also one per step
BatchSize = PositiveInt


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Inputs(_Table):
    """`[inputs]`: what the model is fed: a name of `dynbench.data` or `file.py:function`, and its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Task(_Table):
    """`[task]`: how answers are judged by labels; see docs/your-own-model.md.

    Without `kind` only what types and shapes leave no doubt about is judged.
    """

    kind: str | None = None  # of TASKS, or a metric of the user's own: 'path/to/file.py:function'
    answer: str | int | None = None  # which entry of the answer: a key, a place, an attribute, or a path 'a.0.b'
    ignore: int = -100  # the label of what is not judged
    threshold: float | None = None  # of yes, in 'binary' and 'multilabel'; None: 0, as answers are logits

    @field_validator("kind")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in TASKS and ":" not in value:
            raise ValueError(f"{suggestion(value, TASKS)}; or a metric of your own as FILE.py:function")
        return value


class ModelRef(_Table):
    """A model: `package.module:function` or `path/to/file.py:function`, its arguments and weights."""

    model: str
    model_args: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    weights_by_part: dict[str, str] = Field(default_factory=dict)

    @field_validator("model")
    @classmethod
    def _is_reference(cls, value: str) -> str:
        if ":" not in value:
            raise ValueError("must be 'package.module:function' or 'path/to/file.py:function'")
        return value


class Baseline(ModelRef):
    """`[[baselines]]`: a static network measured in the same run. One is primary and used for efficiency.

    `model = "self:dense"`, the default, is the workload's own model with every decision point its static twin. `form`
    is how it is written down: a name of `dynbench.engines.FORMS`, or several joined by '+'.
    """

    name: str
    primary: bool = False
    model: str = "self:dense"
    form: str = "plain"


class Opaque(ModelRef):
    """`[[opaque]]`: a dynamic network with control flow of its own and no decision points, such as its authors' code.

    It is called as it is, in the same rounds, and decides for itself; `same_answer_as = "dynamic"` demands the answers
    of the workload's model.
    """

    name: str
    same_answer_as: Literal["dynamic"] | None = None


class Synthetic(_Table):
    """`[decisions.synthetic]`: see `dynbench.dynamic.sources.synthetic`."""

    keep_rate: Rate = 0.5
    item_correlation: float = Field(default=0.0, ge=0, le=1)
    layer_correlation: float = Field(default=0.0, ge=0, le=1)
    expert_skew: float = Field(default=0.0, ge=0)

    @field_validator("keep_rate")
    @classmethod
    def _is_rate(cls, value: Rate) -> Rate:
        rates = value if isinstance(value, list) else [value]
        if any(not 0 <= r <= 1 for rate in rates for r in (rate if isinstance(rate, list) else [rate])):
            raise ValueError("must lie between 0 and 1")
        return value


class Published(Synthetic):
    """`[decisions.published]`: the rates a paper reports, and where."""

    provenance: str


class DecisionTables(_Table):
    """`[decisions]`."""

    synthetic: Synthetic = Field(default_factory=lambda: Synthetic())
    published: Published | None = None


class RunTable(_Table):
    """`[run]`: what is measured unless the command line says otherwise."""

    strategies: list[str] | None = None  # None: all; one of the user's own is 'path/to/file.py:Name'
    batch_sizes: list[BatchSize] = [1, 8, 32]
    decisions: list[str] = ["learned"]
    keep_rates: list[float] = Field(default_factory=list)
    accuracy_items: int = Field(default=1000, ge=0)
    stream_samples: PositiveInt = 64  # a stream has at least so many, also at batch 1; fewer where each is large

    @field_validator("batch_sizes", "strategies", "decisions")
    @classmethod
    def _not_empty(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and not value:
            raise ValueError("must name at least one")
        return value

    @field_validator("strategies")
    @classmethod
    def _are_strategies(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            if name not in STRATEGY_NAMES and ":" not in name:
                raise ValueError(f"no strategy is named {name!r}; {suggestion(name, STRATEGY_NAMES)}")
        return value

    @field_validator("keep_rates")
    @classmethod
    def _are_rates(cls, value: list[float]) -> list[float]:
        if any(not 0 <= r <= 1 for r in value):
            raise ValueError("must lie between 0 and 1")
        return value


class TrainTable(_Table):
    """`[train]`: how the weights were made."""

    recipe: str
    options: dict[str, Any] = Field(default_factory=dict)


class Workload(ModelRef):
    """A workload file."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str
    title: str
    inputs: Inputs
    task: Task = Field(default_factory=lambda: Task())
    model_kind: Literal["points", "opaque"] = "points"  # opaque: no decision points; see `Opaque`
    baselines: list[Baseline] = Field(default_factory=list)
    opaque: list[Opaque] = Field(default_factory=list)
    run: RunTable = Field(default_factory=lambda: RunTable())
    decisions: DecisionTables = Field(default_factory=lambda: DecisionTables())
    claims: list[Claim] = Field(default_factory=list)
    train: TrainTable | None = None
    role: Role | None = None  # its result is known beforehand: the report says whether it was found
    quantities: list[str] = Field(default_factory=list)  # of the user's own: 'path/to/file.py:NAME'
    varied: Variation | None = None  # of one that was made by WORKLOAD@ARGUMENT=VALUE
    file: Path = Field(Path(), exclude=True)

    @property
    def reference(self) -> str:
        """What `load_spec` makes it of, in any folder."""
        varied = "" if self.varied is None else f"@{self.varied.argument}={json.dumps(self.varied.value)}"
        return f"{self.file}{varied}"

    @property
    def folder(self) -> Path:
        """Where the file lies; relative paths in it start there."""
        return self.file.parent

    @property
    def primary(self) -> Baseline:
        """The baseline that efficiency refers to: the one marked, else the model itself under `dense`."""
        return next((b for b in self.baselines if b.primary), Baseline(name="dense", primary=True))

    @property
    def opaque_networks(self) -> list[Opaque]:
        """The opaque networks: the workload's own model, named after its function, is one where it has no points."""
        if self.model_kind == "points":
            return self.opaque
        own = Opaque(name=self.model.rpartition(":")[2], **self.model_dump(include=set(ModelRef.model_fields)))
        return [own, *self.opaque]


def chosen_workloads(asked: Sequence[str]) -> list[str]:
    """The workloads that a command line means: none are the default suite, 'all' is every one that comes along."""
    named = [name for a in asked for name in (workload_files() if a == "all" else [a])]
    return list(dict.fromkeys(named)) or list(DEFAULT_SUITE)


def load_specs(workloads: Sequence[str]) -> list[Workload]:
    """Reads several workloads.

    Args:
        workloads: names, files, or 'WORKLOAD@ARGUMENT=V1,V2': the same with an argument of its model changed, and
            untrained.

    Raises:
        UserError: one cannot be read, or two have the same name: results are addressed by it.
    """
    specs = [spec for w in workloads for spec in _variants(w)]
    files: dict[str, Path] = {}
    for spec in specs:
        if (other := files.setdefault(spec.name, spec.file)) != spec.file:
            raise UserError(f"{other} and {spec.file} are both named {spec.name!r}; give one another 'name'")
    return list({spec.name: spec for spec in specs}.values())


def load_spec(workload: str) -> Workload:
    """Reads and validates a workload.

    Args:
        workload: a name of `workload_files`, or the path of a TOML file; with '@ARGUMENT=VALUE' behind it, one that
            differs in an argument of its model.

    Raises:
        UserError: no such workload, malformed TOML, or a key or value that is not accepted.
    """
    spec, *others = _variants(workload)
    if others:
        raise UserError(f"{workload}: one value is accepted here, not {1 + len(others)}")
    return spec


def _read(workload: str) -> Workload:
    known = workload_files()
    path = known.get(workload, Path(workload))
    if path.suffix == ".py" or not os.path.isfile(path):  # which says no of a name that is too long as well
        raise UserError(instead_of(workload, known))
    return parse_spec(read_toml(path), path)


def _variants(workload: str) -> list[Workload]:
    """A workload, or each of 'WORKLOAD@ARGUMENT=V1,V2'."""
    name, at, variation = workload.rpartition("@")
    argument, equals, values = variation.partition("=")
    if not (at and equals) or os.path.isfile(workload):
        return [_read(workload)]
    spec = _read(name)
    if argument not in spec.model_args:
        raise UserError(
            f"{workload}: {spec.file} gives its model no argument {argument!r} that could be varied; "
            f"{suggestion(argument, spec.model_args)}"
        )
    found = [_literal(text) for text in values.split(",")]
    if any(isinstance(value, float) and not math.isfinite(value) for value in found):
        raise UserError(f"{workload}: a value must be finite")
    return [_varied(spec, argument, value) for value in found]


def _literal(text: str) -> bool | int | float | str:
    """A value as TOML has it, or the text itself."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, ValueError):
        return text
    return value if isinstance(value, bool | int | float | str) else text


def _varied(spec: Workload, argument: str, value: bool | int | float | str) -> Workload:
    """The workload with an argument of its model changed, and of its baselines where they have it too.

    Weights fit the file's own value only, so all networks are untrained, and nothing is said about accuracy.
    """

    def changed(ref: ModelRef) -> dict[str, Any]:
        args = ref.model_args | ({argument: value} if argument in ref.model_args else {})
        return {"model_args": args, "weights": None, "weights_by_part": {}}

    what = f"{argument}={value}"
    return spec.model_copy(
        update=changed(spec)
        | {
            "name": f"{spec.name}@{what}",
            "title": f"{spec.title}, {argument} = {value}",
            "baselines": [b.model_copy(update=changed(b)) for b in spec.baselines],
            "opaque": [o.model_copy(update=changed(o)) for o in spec.opaque],
            "run": spec.run.model_copy(update={"accuracy_items": 0}),
            "claims": [],
            "train": None,
            "role": None,  # of the file's own value
            "varied": Variation(of=spec.name, argument=argument, value=value),
        }
    )


def parse_spec(table: dict[str, Any], path: Path) -> Workload:
    """Validates a workload table; `path` is the file it stands for.

    Raises:
        UserError: a key or value that is not accepted, with the file, the key, the value and what is.
    """
    try:
        spec = Workload.model_validate({**table, "file": path.resolve()})
    except ValidationError as e:
        raise UserError(f"{path}: {_sentence(e, Workload)}") from e
    if sum(b.primary for b in spec.baselines) > 1:
        raise UserError(f"{path}: baselines: more than one has primary = true; efficiency refers to one")
    names = [*(b.name for b in spec.baselines or [spec.primary]), *(o.name for o in spec.opaque_networks)]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"{path}: baselines: two networks are named {twice!r}; names must differ")
    if spec.model_kind == "opaque":
        _check_opaque(spec, path)
    if "published" in spec.run.decisions and spec.decisions.published is None:
        raise UserError(f"{path}: run.decisions asks for 'published', but there is no [decisions.published] table")
    return spec


def _check_opaque(spec: Workload, path: Path) -> None:
    """Raises where a workload asks for what only decision points can give."""
    if not any(b.primary and b.model != "self:dense" for b in spec.baselines):
        raise UserError(
            f"{path}: an opaque model has no static twin to be compared with: name a static network in [[baselines]], "
            "with its model and primary = true"
        )
    if spec.run.strategies is not None or spec.run.keep_rates or spec.run.decisions != ["learned"]:
        raise UserError(
            f"{path}: run: an opaque model decides for itself, so it has no strategies, keep_rates or other decisions "
            "than its own"
        )
    if any(o.same_answer_as for o in spec.opaque):
        raise UserError(f'{path}: opaque: same_answer_as = "dynamic" needs a model with decision points')


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "(file)"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        accepted = _keys_at(model, first["loc"][:-1])
        return f"unknown key {key}; {suggestion(str(first['loc'][-1]), accepted, most=1)}{more}"
    if first["type"] == "missing":
        return f"key {key} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{key} = {first['input']!r}: {message}{more}"


def _keys_at(model: type[BaseModel], loc: Iterable[Any]) -> list[str]:
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return [f.alias or n for n, f in model.model_fields.items() if n != "file"]


class Options(_Table):
    """What the command line says; None: as the workload says."""

    device: str = "cpu"
    strategies: list[str] | None = None
    batch_sizes: list[PositiveInt] | None = None
    decisions: list[str] | None = None
    dtype: str | None = None  # every network is cast to it; None: as they are built
    threads: PositiveInt = 1
    time_limit_s: float = Field(7.0, gt=0)
    precision: float = Field(0.02, gt=0, lt=1)
    seed: int = 0
    data_dir: Path | None = None
    engines: list[str] = ["eager"]  # each executes every arm, in the same group
    automatic: bool = False  # measure nothing else of the dynamic network
    controls: Literal["none", "default", "all"] = "default"  # arms that show where the saving goes
    deployed: bool = False  # every network in its fastest way as well, found by a tournament
    deployed_sweep: bool = False  # in keep-rate sweeps, too
    scaling: bool = False  # T(n) of every region, and what each arm calls and moves: what the cost model is made of
    load: str = "closed loop"
    target: str = "local"


def check_options(options: Options) -> Options:
    """Checks names that pydantic cannot.

    Returns:
        The options, with references to files of the user's own made absolute: the measuring process may run elsewhere.

    Raises:
        UserError: an unknown strategy, dtype, engine, load, target or decision source, with the nearest names.
    """
    if options.dtype is not None and options.dtype not in DTYPES:
        raise UserError(f"unknown dtype {options.dtype!r}; {suggestion(options.dtype, DTYPES)}")
    for source in options.decisions or []:
        if source not in SOURCE_NAMES and not source.startswith("replay:"):
            known = (*SOURCE_NAMES, "replay:PATH")
            raise UserError(f"unknown decision source {source!r}; {suggestion(source, known)}")
    strategies = options.strategies
    if strategies is not None and AUTO in strategies:
        if strategies != [AUTO]:
            raise UserError(f"strategy {AUTO!r} stands alone; it picks from all strategies")
        if not options.deployed:
            raise UserError(f"strategy {AUTO!r} picks the engine as well; give no --engine with it")
        strategies = None
    return options.model_copy(
        update={
            "automatic": options.automatic or options.strategies == [AUTO],
            "strategies": strategies and [part_reference("strategy", s, STRATEGY_NAMES) for s in strategies],
            "engines": [part_reference("engine", e, ENGINE_NAMES) for e in options.engines],
            "load": part_reference("load", options.load, LOAD_NAMES),
            "target": part_reference("target", options.target, TARGET_NAMES),
        }
    )


def part_reference(what: str, reference: str, known: Sequence[str], folder: Path | None = None) -> str:
    """The name of a part that comes with dynbench, or an absolute reference to one of the user's own.

    Args:
        what: 'strategy', 'engine', ...
        reference: a name, or `path/to/file.py:NAME` or `package.module:NAME`.
        known: the names.
        folder: where a relative path starts; default: the working folder.

    Raises:
        UserError: an unknown name.
    """
    if reference in known:
        return reference
    where, colon, name = reference.rpartition(":")
    if not colon:
        raise UserError(f"unknown {what} {reference!r}; {suggestion(reference, known)}; or your own as FILE.py:NAME")
    return f"{(folder or Path.cwd()) / where}:{name}" if where.endswith(".py") else reference
