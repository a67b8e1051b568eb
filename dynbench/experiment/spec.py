"""What to measure: a workload file, validated, and the options of a run."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from dynbench.errors import UserError
from dynbench.paths import project_dir
from dynbench.store.schema import Claim

StrategyName = Literal["dense", "masking", "compaction", "cascading", "batch_union", "specialised", "per_sample"]
STRATEGY_NAMES = get_args(StrategyName)
ENGINE_NAMES = ("eager", "compile")
DTYPES = ("float32", "float64", "bfloat16", "float16")
DEFAULT_SUITE = ("skipnet38_digits", "idk_digits", "moe_text")
Rate = float | list[float | list[float]]  # for all; one per point; of an Exits or Loop also one per step
BatchSize = PositiveInt


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Inputs(_Table):
    """`[inputs]`: what the model is fed: a name of `dynbench.data` or `file.py:function`, and its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


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

    strategies: list[StrategyName] = list(STRATEGY_NAMES)
    batch_sizes: list[BatchSize] = [1, 8, 32]
    decisions: list[str] = ["learned"]
    keep_rates: list[float] = Field(default_factory=list)
    accuracy_items: int = Field(default=1000, ge=0)
    stream_samples: PositiveInt = 64  # a stream has at least so many, also at batch 1; fewer where each is large

    @field_validator("batch_sizes", "strategies", "decisions")
    @classmethod
    def _not_empty(cls, value: list[Any]) -> list[Any]:
        if not value:
            raise ValueError("must name at least one")
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
    baselines: list[Baseline] = Field(default_factory=list)
    run: RunTable = Field(default_factory=lambda: RunTable())
    decisions: DecisionTables = Field(default_factory=lambda: DecisionTables())
    claims: list[Claim] = Field(default_factory=list)
    train: TrainTable | None = None
    file: Path = Field(Path(), exclude=True)

    @property
    def folder(self) -> Path:
        """Where the file lies; relative paths in it start there."""
        return self.file.parent

    @property
    def primary(self) -> Baseline:
        """The baseline that efficiency refers to: the one marked, else the model itself under `dense`."""
        return next((b for b in self.baselines if b.primary), Baseline(name="dense", primary=True))


def workload_files() -> dict[str, Path]:
    """The workloads that come with dynbench, by name."""
    return {p.stem: p for p in sorted(project_dir("workloads").glob("*.toml"))}


def chosen_workloads(asked: Sequence[str]) -> list[str]:
    """The workloads that a command line means: none are the default suite, 'all' is every one that comes along."""
    named = [name for a in asked for name in (workload_files() if a == "all" else [a])]
    return list(dict.fromkeys(named)) or list(DEFAULT_SUITE)


def load_spec(workload: str) -> Workload:
    """Reads and validates a workload.

    Args:
        workload: a name of `workload_files`, or the path of a TOML file.

    Raises:
        UserError: no such workload, malformed TOML, or a key or value that is not accepted.
    """
    known = workload_files()
    path = known.get(workload, Path(workload))
    if not path.is_file():
        near = difflib.get_close_matches(workload, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
        raise UserError(f"no workload {workload!r}, and no such file; {hint}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not valid TOML: {e}") from e
    return parse_spec(table, path)


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
    names = [b.name for b in spec.baselines]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"{path}: baselines: two are named {twice!r}; names must differ")
    if "published" in spec.run.decisions and spec.decisions.published is None:
        raise UserError(f"{path}: run.decisions asks for 'published', but there is no [decisions.published] table")
    return spec


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "(file)"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        accepted = _keys_at(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), accepted, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"accepted: {', '.join(accepted)}"
        return f"unknown key {key}; {hint}{more}"
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
    dtype: str = "float32"
    threads: PositiveInt = 1
    time_limit_s: float = Field(10.0, gt=0)
    precision: float = Field(0.02, gt=0, lt=1)
    seed: int = 0
    data_dir: Path | None = None
    engine: str = "eager"


def check_options(options: Options) -> None:
    """Checks names that pydantic cannot.

    Raises:
        UserError: an unknown strategy, dtype, engine or decision source, with the nearest names.
    """
    for s in options.strategies or []:
        if s not in STRATEGY_NAMES:
            raise UserError(_unknown("strategy", s, STRATEGY_NAMES))
    if options.dtype not in DTYPES:
        raise UserError(_unknown("dtype", options.dtype, DTYPES))
    if options.engine not in ENGINE_NAMES:
        raise UserError(_unknown("engine", options.engine, ENGINE_NAMES))
    for d in options.decisions or []:
        if d not in ("learned", "synthetic", "published") and not d.startswith("replay:"):
            raise UserError(_unknown("decision source", d, ("learned", "synthetic", "published", "replay:PATH")))


def _unknown(what: str, value: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(value, known, n=2, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"accepted: {', '.join(known)}"
    return f"unknown {what} {value!r}; {hint}"
