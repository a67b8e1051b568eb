"""The memory probe: the fresh process runs exactly the arm that is timed, and its failures are reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dynbench.dynamic import Execution
from dynbench.experiment import memory
from dynbench.experiment.memory import ProbeRequest, cell_peak_bytes
from dynbench.experiment.networks import build_model
from dynbench.experiment.spec import Options, load_spec
from dynbench.store.schema import Arm
from dynbench.strategies import PerSample
from dynbench.unavailable import Unavailable

TINY = Path(__file__).parent / "tiny"
EXTRA_BYTES = 200_000_000
LEAST, MOST = 0.9 * EXTRA_BYTES, 1.5 * EXTRA_BYTES  # what is measured of it
COMPACTION = Arm(kind="strategy", strategy="compaction")
PLAIN = Arm(kind="baseline", baseline="plain")

GREEDY = f'''
import torch

from dynbench.strategies import Compaction


class Greedy:
    """Needs memory for every region that it calls."""

    name = "greedy"
    as_written = False

    def facts(self):
        return {{}}

    def refuses(self, device):
        return None

    def prepare(self, region):
        run = region.module.forward

        def call(*args):
            torch.ones({EXTRA_BYTES // 4})
            return run(*args)

        return call


class GreedyStrategy(Compaction):
    """Needs memory once per batch."""

    name = "greedy_strategy"

    def run(self, ex, model, args):
        torch.ones({EXTRA_BYTES // 4})
        return super().run(ex, model, args)
'''


@pytest.fixture
def request_(tmp_path: Path) -> ProbeRequest:
    (tmp_path / "greedy.py").write_text(GREEDY)
    (tmp_path / "net.py").write_bytes((TINY / "net.py").read_bytes())
    text = (TINY / "tiny.toml").read_text(encoding="utf-8")
    for how in ("exit", "raise"):
        text += f'\n[[baselines]]\nname = "{how}"\nmodel = "net.py:dies"\nmodel_args = {{ how = "{how}" }}\n'
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    spec = load_spec(str(tmp_path / "tiny.toml"))
    return ProbeRequest(spec, Options(), COMPACTION, x, None, start=4, items=8)


def found(request: ProbeRequest, **changes: object) -> float:
    peak = cell_peak_bytes(replace(request, **changes))  # type: ignore[arg-type]
    assert isinstance(peak, float), peak
    return peak


def test_every_kind_of_arm_has_a_peak(request_: ProbeRequest) -> None:
    for arm in (COMPACTION, PLAIN, Arm(kind="control", strategy="compaction", live=True)):
        assert 0 < found(request_, arm=arm) < LEAST


def test_an_arm_runs_under_its_own_engine(request_: ProbeRequest) -> None:
    engine = f"{request_.spec.folder / 'greedy.py'}:Greedy"
    options = Options(engines=["eager", engine])
    for arm in (COMPACTION, PLAIN):
        assert found(request_, options=options, arm=arm) < LEAST
        greedy = arm.model_copy(update={"engine": "greedy"})
        assert LEAST < found(request_, options=options, arm=greedy) < MOST


def test_an_arm_runs_under_its_own_strategy(request_: ProbeRequest) -> None:
    options = Options(strategies=[f"{request_.spec.folder / 'greedy.py'}:GreedyStrategy"])
    arm = Arm(kind="strategy", strategy="greedy_strategy")
    assert LEAST < found(request_, options=options, arm=arm) < MOST


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_inputs_of_every_dtype_arrive(request_: ProbeRequest, dtype: str) -> None:
    inputs = request_.inputs.to(getattr(torch, dtype))
    assert found(request_, options=Options(dtype=dtype), inputs=inputs) > 0


@torch.inference_mode()
def test_what_is_read_is_what_was_written(request_: ProbeRequest, tmp_path: Path) -> None:
    model = build_model(request_.spec, request_.spec.folder)
    recording = Execution(PerSample(), record=True)
    for start in (0, 4):
        recording.run(model, request_.inputs, start=start, items=8)
    for trace in (recording.trace, None):
        saved = replace(request_, trace=trace)
        loaded = ProbeRequest.load(saved.save(tmp_path))
        assert loaded.trace == trace and torch.equal(loaded.inputs, saved.inputs)
        assert replace(loaded, inputs=saved.inputs, trace=trace) == saved
    assert found(replace(request_, trace=recording.trace)) > 0


def test_a_failure_or_a_death_is_a_reason(request_: ProbeRequest) -> None:
    for how, reason in (("raise", "failed: ValueError: no such kernel"), ("exit", "died (exit code 7)")):
        peak = cell_peak_bytes(replace(request_, arm=Arm(kind="baseline", baseline=how)))
        assert peak == Unavailable(unavailable=f"the fresh process {reason}")
    assert found(request_) > 0  # the next one is not affected


def test_a_hang_is_a_reason(request_: ProbeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROBE_TIMEOUT_S", 0.0)
    assert cell_peak_bytes(request_) == Unavailable(unavailable="the fresh process did not answer within 0 s")


def test_a_fork_server_that_ended_is_a_reason_and_replaced(request_: ProbeRequest) -> None:
    memory._fork_server().close()
    peak = cell_peak_bytes(request_)
    assert isinstance(peak, Unavailable) and "a fresh process could not be started" in peak.unavailable
    assert found(request_) > 0
