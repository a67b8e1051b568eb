"""A workload file is accepted whole or refused in one sentence that names file, key, value and what is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynbench.engines import ENGINES
from dynbench.errors import UserError
from dynbench.experiment.spec import (
    Options,
    check_options,
    load_spec,
    load_specs,
    parse_spec,
)
from dynbench.launch import LAUNCHERS
from dynbench.meters.loads import LOADS
from dynbench.names import ENGINE_NAMES, LOAD_NAMES, STRATEGY_NAMES, TARGET_NAMES
from dynbench.paths import workload_files
from dynbench.strategies import STRATEGIES

GOOD: dict[str, Any] = {
    "schema": 1,
    "name": "w",
    "title": "W",
    "model": "a.b:c",
    "inputs": {"name": "digits"},
}


def parse(**changes: Any) -> Any:
    return parse_spec({**GOOD, **changes}, Path("w.toml"))


def test_the_smallest_workload_has_the_defaults_a_user_would_expect() -> None:
    spec = parse()
    assert spec.run.batch_sizes == [1, 8, 32]
    assert spec.run.decisions == ["learned"]
    assert spec.primary.name == "dense" and spec.primary.model == "self:dense"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": {"batch_sizes": [0]}}, ["w.toml", "run.batch_sizes.0", "0", "greater than 0"]),
        ({"run": {"batch_sizes": []}}, ["w.toml", "run.batch_sizes", "at least one"]),
        ({"run": {"strategies": ["compactoin"]}}, ["w.toml", "run.strategies", "'compactoin'", "mean compaction"]),
        ({"run": {"strategy": ["masking"]}}, ["w.toml", "unknown key run.strategy", "strategies"]),
        ({"run": {"keep_rates": [1.5]}}, ["w.toml", "run.keep_rates", "between 0 and 1"]),
        ({"modle": "x"}, ["w.toml", "unknown key modle", "did you mean model"]),
        ({"model": "nocolon"}, ["w.toml", "model", "nocolon", "function"]),
        ({"schema": 2}, ["w.toml", "schema", "2", "1"]),
        ({"inputs": {}}, ["w.toml", "inputs.name", "missing"]),
        ({"title": 3}, ["w.toml", "title", "3", "string"]),
        ({"run": {"decisions": ["published"]}}, ["w.toml", "published", "decisions.published"]),
        (
            {"baselines": [{"name": "a", "primary": True}, {"name": "b", "primary": True}]},
            ["w.toml", "more than one", "primary"],
        ),
        ({"baselines": [{"name": "a"}, {"name": "a"}]}, ["w.toml", "'a'", "differ"]),
        ({"decisions": {"synthetic": {"keep_rate": 2.0}}}, ["w.toml", "decisions.synthetic.keep_rate", "2.0"]),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse(**changes)
    text = str(refused.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_malformed_toml_names_file_and_place(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("name = [1,\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML"):
        load_spec(str(file))


def test_an_unknown_workload_gets_the_nearest_names() -> None:
    known = next(iter(workload_files()))
    with pytest.raises(UserError, match=f"did you mean .*{known}"):
        load_spec(known[:-1])


def test_two_workloads_of_one_name_are_refused_and_the_same_file_twice_is_one(tmp_path: Path) -> None:
    text = 'schema = 1\nname = "same"\ntitle = "T"\nmodel = "a.py:b"\ninputs = { name = "digits" }\n'
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(text, encoding="utf-8")
    two.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"one\.toml and .*two\.toml are both named 'same'"):
        load_specs([str(one), str(two)])
    assert len(load_specs([str(one), str(one)])) == 1


def test_names_that_are_checked_without_importing_torch_are_those_that_there_are() -> None:
    assert tuple(STRATEGIES) == STRATEGY_NAMES
    assert tuple(ENGINES) == ENGINE_NAMES
    assert tuple(LOADS) == LOAD_NAMES
    assert tuple(LAUNCHERS) == TARGET_NAMES


def test_a_reference_to_a_file_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checked = check_options(Options(strategies=["masking", "mine.py:Mine"], engines=["pkg.mod:Engine"]))
    assert checked.strategies == ["masking", f"{tmp_path}/mine.py:Mine"]
    assert checked.engines == ["pkg.mod:Engine"]


def test_every_workload_that_ships_is_valid_and_named_like_its_file() -> None:
    assert workload_files()
    for name, path in workload_files().items():
        assert load_spec(str(path)).name == name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategies": ["maskin"]}, "did you mean masking"),
        ({"dtype": "float31"}, "did you mean float32"),
        ({"decisions": ["lerned"]}, "did you mean learned"),
        ({"engines": ["eagr"]}, "unknown engine 'eagr'; did you mean eager"),
        ({"load": "open"}, "unknown load 'open'; .*FILE.py:NAME"),
        ({"target": "phone"}, "unknown target 'phone'; accepted: local"),
    ],
)
def test_unknown_options_get_the_nearest_names(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_options(Options(**changes))


# --- WORKLOAD@ARGUMENT=VALUES ----------------------------------------------------------------------------------------


def test_a_varied_workload_differs_in_its_argument_and_has_no_weights() -> None:
    two, four = load_specs(["moe_text@experts=2,4"])
    assert (two.name, four.name) == ("moe_text@experts=2", "moe_text@experts=4")
    assert (two.model_args["experts"], four.model_args["experts"]) == (2, 4)
    assert two.weights is None and all(b.weights is None for b in two.baselines)
    assert two.run.accuracy_items == 0 and not two.claims
    assert two.varied is not None and (two.varied.of, two.varied.argument, two.varied.value) == (
        "moe_text",
        "experts",
        2,
    )
    assert "experts" not in two.baselines[1].model_args  # the dense twin has none


def test_the_reference_of_a_varied_workload_makes_it_again() -> None:
    for value in ("3", "0.5", "true", "some text"):
        (spec,) = load_specs([f"moe_text@experts={value}"])
        assert load_spec(spec.reference) == spec


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("moe_text@expertz=2", "gives its model no argument 'expertz' that could be varied; did you mean experts"),
        ("moe_text@experts=nan", "a value must be finite"),
        ("moe_textt@experts=2", "no workload 'moe_textt', and no such file; did you mean moe_text"),
        ("moe_text@experts", "no workload 'moe_text@experts'"),
    ],
)
def test_what_cannot_be_varied_is_one_sentence(asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_specs([asked])


def test_where_one_workload_is_wanted_one_value_is() -> None:
    with pytest.raises(UserError, match="one value is accepted here, not 2"):
        load_spec("moe_text@experts=2,4")
