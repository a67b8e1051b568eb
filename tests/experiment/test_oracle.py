"""The right answer, how far from it is rounding, and what is compared where there is no float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynbench.dynamic import Execution, Exits, Skip
from dynbench.errors import UserError
from dynbench.experiment.oracle import PRECISIONS, Oracle, answers, output_error, precision_of
from dynbench.strategies import Compaction, PerSample

NAN, INF = math.nan, math.inf


def error(got: list[float], right: list[float], dtype: torch.dtype = torch.float32) -> float:
    return output_error([torch.tensor(got, dtype=dtype)], [torch.tensor(right, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("got", "right", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0, -INF], [1.0, -INF], 0.0),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, 5.0], [1.0, -INF], INF),
        ([1.0, -INF], [1.0, 5.0], INF),
        ([1.5, -INF], [1.0, -INF], 0.5),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([1.0, 1.0], [NAN, 1.0], INF),
        ([NAN, 2.0], [NAN, 1.0], 1.0),
        ([-INF, -INF], [-INF, -INF], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_nan_and_infinities_are_values(got: list[float], right: list[float], expected: float) -> None:
    assert error(got, right) == expected


def test_what_overflows_in_the_type_of_the_answer_is_infinite_there() -> None:
    assert error([INF, 1.0], [1e39, 1.0]) == 0.0
    assert error([INF, 1.0], [1e5, 1.0], torch.float16) == 0.0
    assert error([INF, 1.0], [1e5, 1.0]) == INF
    lowest = torch.finfo(torch.float32).min
    assert error([lowest, 1.0], [torch.finfo(torch.float64).min, 1.0]) == 0.0


@pytest.mark.parametrize("mask", [-1e4, -1e9])
@pytest.mark.parametrize("masked", [1, 8])
def test_numbers_that_stand_for_a_mask_hide_no_error(mask: float, masked: int) -> None:
    right = [mask] * masked + [0.5, -1.0]
    assert error([mask] * masked + [0.4, -1.0], right) == pytest.approx(0.1)
    assert error([2 * mask] * masked + [0.5, -1.0], right) == pytest.approx(1.0)


def test_answers_of_other_shapes_are_no_answers_and_integers_and_booleans_are_compared() -> None:
    one = torch.ones(3)
    assert output_error([one], [one, one]) == INF
    assert output_error([one], [torch.ones(3, 1)]) == INF
    assert output_error([torch.tensor([1, 2])], [torch.tensor([1, 2])]) == 0.0
    assert output_error([torch.tensor([True])], [torch.tensor([False])]) > 0.5
    assert output_error([torch.tensor([1 + 1j])], [torch.tensor([1 + 0j])]) == 1.0
    assert output_error([torch.ones(0)], [torch.ones(0)]) == 0.0


def test_numbers_of_a_whole_batch_are_left_out_and_answers_that_follow_its_longest_item_are_refused() -> None:
    batches = [(0, torch.ones(2, 3)), (2, torch.ones(1, 3))]
    (rows,) = answers(lambda _, x: (x, x.sum()), batches)
    assert rows.shape == (3, 3)
    with pytest.raises(UserError, match=r"different shapes, \[n, \d\] and \[n, \d\]"):
        answers(lambda _, x: x[:, : len(x)], batches)


# --- networks that cannot be compared in float64 ---------------------------------------------------------------------


def sure(answer: Any, state: Any, k: int) -> Tensor:
    return answer.softmax(1).amax(1) > 0.3


def exits(stage: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return Exits("exit", [stage() for _ in range(3)], [nn.Linear(16, 4) for _ in range(3)], sure).eval()


class OwnState(nn.Module):
    """A GRU whose first state is written out in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x.unsqueeze(1), torch.zeros(1, len(x), 16))[0][:, 0]


class Uncopied(nn.Linear):
    def __init__(self) -> None:
        super().__init__(16, 16)

    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise RuntimeError("holds a handle")


class Constant(nn.Module):
    """Answers otherwise in float64, without an error."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 if x.dtype == torch.float32 else 1.5)


class GateInFloat32(nn.Module):
    """Only the gate, which the static twin does not run, cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.randn(16)

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, Any]:
        return torch.mv(x, self.seen), carry


class SkipNet(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.block, self.head = Skip("block", gate, nn.Linear(16, 16)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x)[0])


HOSTILE = {
    "a state in float32": (lambda: exits(OwnState), "its copy in float64 does not run"),
    "no copy": (lambda: exits(Uncopied), "holds a handle"),
    "another answer in float64": (lambda: exits(Constant), "gives another answer"),
    "a gate in float32": (lambda: SkipNet(GateInFloat32()), "does not run"),
    "scripted": (lambda: exits(lambda: torch.jit.script(OwnState())), "does not run"),
    "int8": (
        lambda: torch.ao.quantization.quantize_dynamic(exits(lambda: nn.Linear(16, 16)), {nn.Linear}),
        "does not run",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
@torch.inference_mode()
def test_the_model_is_compared_in_its_own_type_where_there_is_no_float64(case: str) -> None:
    make, says = HOSTILE[case]
    model, x = make(), torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    own = Execution(PerSample(), record=True)
    own.run(model, x)
    oracle = Oracle(model, [(0, x)], 12)
    right = oracle.reference(Execution(PerSample(), replay=own.trace))
    assert right.answer is not None and right.note is not None and says in right.note
    assert right.type == oracle.precision.name == ("int8" if case == "int8" else "float32")
    assert 0 < right.tolerance <= oracle.precision.ceiling
    got = Execution(Compaction(), replay=own.trace).run(model, x)
    assert output_error([got], right.answer) <= right.tolerance
    assert output_error([got + got.abs().max() * 1.1 * right.tolerance], right.answer) > right.tolerance


@torch.inference_mode()
def test_a_tolerance_has_a_ceiling_whatever_the_network_does() -> None:
    model, x = exits(lambda: nn.Dropout(0.5).train()), torch.randn(12, 16)
    for module in model.modules():
        module.train(isinstance(module, nn.Dropout))
    oracle = Oracle(model, [(0, x)], 12)
    assert oracle.tolerance <= PRECISIONS["float32"].ceiling and oracle.note is not None


@torch.inference_mode()
def test_a_plain_network_is_compared_in_float64_with_a_tolerance_near_the_floor() -> None:
    model, x = exits(lambda: nn.Linear(16, 16)), torch.randn(12, 16)
    oracle = Oracle(model, [(0, x)], 12)
    right = oracle.reference(Execution(PerSample()))
    assert right.type == "float64" and right.note is None
    assert right.answer is not None and right.answer[0].dtype == torch.float64
    assert PRECISIONS["float32"].floor <= right.tolerance < 3 * PRECISIONS["float32"].floor


class Autocast(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class Complex(nn.Module):
    """A spectral layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, dtype=torch.cfloat))
        self.mix = nn.Parameter(torch.randn(9, 9, dtype=torch.cfloat) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft((torch.fft.rfft(x) * self.weight) @ self.mix, n=16)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (lambda: nn.Linear(16, 16), "float32"),
        (lambda: Autocast(16, 16), "bfloat16"),
        (lambda: nn.Linear(16, 16).half(), "float16"),
        (Complex, "float32"),
        (nn.ReLU, "float32"),
    ],
)
@torch.inference_mode()
def test_the_precision_is_that_of_the_coarsest_products(stage: Callable[[], nn.Module], name: str) -> None:
    inner = stage()

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            half = isinstance(inner, nn.Linear) and inner.weight.dtype == torch.float16
            return inner(x.half()).float() if half else inner(x)

    assert precision_of(exits(Stage), torch.randn(3, 16)).name == name


@torch.inference_mode()
def test_complex_weights_follow_into_float64() -> None:
    oracle = Oracle(exits(Complex), [(0, torch.randn(12, 16))], 12)
    assert oracle.note is None and oracle.tolerance < 1e-4
