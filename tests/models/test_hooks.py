"""The hooks of a model: each is read, each has a default, and a wrong one is an error of one sentence."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from dynbench import hooks
from dynbench.dynamic import Trace
from dynbench.errors import UserError
from dynbench.models import MODELS
from dynbench.paths import load_object

FILE = """
from torch import nn

PAPER = "A paper"
PROVENANCE = "a reconstruction"


class Net(nn.Module):
    outside_torch = "OpenCV"
    weights_file = __file__

    def input_shape(self, default):
        return [1, *default[1:]]


def build():
    return Net()


def accounted_macs(model, trace, shape):
    return trace.items * shape[-1], "as the paper counts"


def declared_costs(model, trace):
    return [{"what": "expert", "share": 0.5, "latency_s": 2.0, "cost": 1.0, "unit": "EUR"}]
"""
SHAPE = (1, 4, 4)
BUILDERS = [pytest.param(reference, id=name) for name, reference in MODELS.items()]


def model(folder: Path, *changes: tuple[str, str]) -> nn.Module:
    """A model of a user's own file, FILE with changes."""
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "own.py").write_text(text)
    net: nn.Module = load_object("own.py:build", folder)()
    return net


def test_every_hook_is_read(tmp_path: Path) -> None:
    found = hooks.of(model(tmp_path))
    assert (found.paper, found.provenance) == ("A paper", "a reconstruction")
    assert (found.weights_file, found.outside_torch) == (tmp_path / "own.py", "OpenCV")
    assert found.accounted_macs(Trace(items=3), SHAPE) == (12.0, "as the paper counts")
    assert [row["what"] for row in found.declared_costs(Trace())] == ["expert"]
    assert found.input_shape() == (1, 32, 32)
    assert found.input_shape((3, 8, 8)) == (1, 8, 8)


def test_every_hook_has_a_default() -> None:
    found = hooks.of(nn.Linear(2, 2))
    assert (found.paper, found.provenance, found.weights_file, found.outside_torch) == (None, None, None, None)
    assert found.accounted_macs(Trace(), SHAPE) is None
    assert found.declared_costs(Trace()) == []
    assert found.input_shape() == hooks.IMAGE
    assert found.input_shape((5,)) == (5,)


def test_the_file_of_a_class_counts_not_that_of_its_builder(tmp_path: Path) -> None:
    (tmp_path / "builder.py").write_text(
        "from net_of_builder import Net\n\nPAPER = 'Another'\n\n\ndef build():\n    return Net()\n"
    )
    (tmp_path / "net_of_builder.py").write_text(FILE)
    build = load_object("builder.py:build", tmp_path)
    assert hooks.of(build()).paper == "A paper"
    assert hooks.origin(build) == ("Another", None)


@pytest.mark.parametrize(
    ("net", "shape", "expected", "dtype"),
    [
        (nn.Linear(2, 2), None, hooks.IMAGE, torch.float32),
        (nn.Linear(2, 2), (2,), (2,), torch.float32),
        (nn.Sequential(nn.Embedding(4, 2)), (7,), (7,), torch.int64),
    ],
)
def test_an_example_has_the_shape_and_the_type_of_an_input(
    net: nn.Module, shape: tuple[int, ...] | None, expected: tuple[int, ...], dtype: torch.dtype
) -> None:
    example = hooks.of(net).example(shape)
    assert (tuple(example.shape), example.dtype) == ((1, *expected), dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('PAPER = "A paper"', "PAPER = 3"), "PAPER is int, it must be str"),
        (('PROVENANCE = "a reconstruction"', "PROVENANCE = []"), "PROVENANCE is list, it must be str"),
        (('outside_torch = "OpenCV"', "outside_torch = True"), "Net: outside_torch is bool, it must be str"),
        (("weights_file = __file__", "weights_file = 1"), "Net: weights_file is int, it must be str or Path"),
    ],
)
def test_a_value_of_a_wrong_type_is_an_error(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        hooks.of(model(tmp_path, change))
    assert "\n" not in str(error.value)


COUNT = ('trace.items * shape[-1], "as the paper counts"', "own.py: accounted_macs")
ASKED = ('[{"what": "expert", "share": 0.5, "latency_s": 2.0, "cost": 1.0, "unit": "EUR"}]', "own.py: declared_costs")
SIZES = ("[1, *default[1:]]", "Net: input_shape")


@pytest.mark.parametrize(
    ("hook", "returned", "message"),
    [
        (COUNT, "3", r"returned 3, not \(MACs per sample, rule\)"),
        (COUNT, '"3", "rule"', r"returned \('3', 'rule'\), not"),
        (COUNT, "trace.nothing", "raised AttributeError: 'Trace' object has no attribute 'nothing'"),
        (ASKED, "None", "returned None, not a list of rows of what, share, latency_s, cost, unit"),
        (ASKED, '[{"what": "expert"}]', r"returned \[{'what': 'expert'}\], not a list of rows of what, share"),
        (ASKED, "1 / 0", "raised ZeroDivisionError: division by zero"),
        (SIZES, "32", "returned 32, not a tuple of positive integers"),
        (SIZES, "(3, 0)", r"returned \(3, 0\), not a tuple of positive integers"),
        (SIZES, "default[7]", "raised IndexError"),
    ],
)
def test_a_function_that_fails_or_returns_something_else_is_an_error(
    tmp_path: Path, hook: tuple[str, str], returned: str, message: str
) -> None:
    body, where = hook
    found = hooks.of(model(tmp_path, (f"return {body}", f"return {returned}")))
    calls = {
        COUNT: lambda: found.accounted_macs(Trace(), SHAPE),
        ASKED: lambda: found.declared_costs(Trace()),
        SIZES: found.input_shape,
    }
    with pytest.raises(UserError, match=f"{where} {message}") as error:
        calls[hook]()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["accounted_macs", "declared_costs", "input_shape"])
def test_a_hook_that_cannot_be_called_is_an_error(tmp_path: Path, name: str) -> None:
    found = hooks.of(model(tmp_path, (f"def {name}", f"{name} = 5\n@lambda _: 5\ndef {name}")))
    calls = {
        "accounted_macs": lambda: found.accounted_macs(Trace(), SHAPE),
        "declared_costs": lambda: found.declared_costs(Trace()),
        "input_shape": found.input_shape,
    }
    with pytest.raises(UserError, match=f"{name} is int, it must be a function"):
        calls[name]()


@pytest.mark.parametrize("reference", BUILDERS)
def test_the_files_of_the_package_follow_the_protocol(reference: str) -> None:
    build = load_object(reference, Path.cwd())
    paper, provenance = hooks.origin(build)
    assert paper and provenance
    file = inspect.getmodule(build)
    for name in ("accounted_macs", "declared_costs"):
        hook, wanted = getattr(file, name, None), getattr(hooks.ModelFile, name)
        if hook is not None:
            assert list(inspect.signature(hook).parameters) == list(inspect.signature(wanted).parameters)[1:]
