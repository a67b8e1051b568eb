"""A run on devices: what comes back is cells, samples and facts, and what was measured stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynbench.analysis.statistics import median_interval, ratio_of_totals
from dynbench.deploy import run as device_run
from dynbench.deploy.build import Written, compile_prepared
from dynbench.deploy.cells import Subject, measured
from dynbench.deploy.job import Result, read_job
from dynbench.deploy.run import RESULTS, Devices, run_on_devices
from dynbench.deploy.targets.base import Lost
from dynbench.deploy.targets.browser import Browser
from dynbench.deploy.targets.browser_guests import Received
from dynbench.deploy.targets.local import Local
from dynbench.deploy.targets.profile import DeviceProfile
from dynbench.errors import UserError
from dynbench.experiment import Options, load_specs
from dynbench.experiment import Result as Outcome
from dynbench.experiment.build import prepare
from dynbench.store.run import Run
from dynbench.unavailable import Unavailable
from tests.deploy.test_bundle import TINY

QUICK = Options(batch_sizes=[1], decisions=["learned"], time_limit_s=0.05, precision=0.5)


def profile(kind: str = "local") -> DeviceProfile:
    return DeviceProfile.model_validate({"title": f"A {kind}", "target": {"kind": kind}})


def go(out: Path, *names: str, kind: str = "local", **more: Any) -> Outcome:
    asked = Devices({name: profile(kind) for name in names}, QUICK, more.pop("browsers", None))
    return run_on_devices([str(TINY)], asked, out, command=["dynbench", "run"], show=lambda _: None, **more)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Written:
    (spec,) = load_specs([str(TINY)])
    return compile_prepared(prepare(spec, QUICK), tmp_path_factory.mktemp("bundles") / "tiny", controls=True)


@pytest.fixture(autouse=True)
def made_once(bundle: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has the same bundle, which need not be proved again."""

    def copy(_: object, out: Path, *, controls: bool) -> Written:
        assert controls
        shutil.copytree(bundle.folder, out)
        return replace(bundle, folder=out)

    monkeypatch.setattr(device_run, "compile_prepared", copy)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny network on this machine, by the python agent."""
    out = tmp_path_factory.mktemp("devices") / "run"
    assert not go(out, "here").unmeasured
    return Run.open(out)


def sent(here: Run) -> dict[str, Any]:
    """What the agent sent."""
    (file,) = (here.path / RESULTS).glob("*/result.json")
    found: dict[str, Any] = json.loads(file.read_bytes())
    return found


def test_every_network_of_the_bundle_has_a_cell(here: Run) -> None:
    assert here.manifest.status == "complete" and here.manifest.devices["here"]["kind"] == "local"
    assert {c.status for c in here.cells} == {"ok"}
    dynamic = next(c for c in here.cells if c.arm.kind == "strategy")
    static = [c for c in here.cells if c.arm.kind == "baseline"]
    assert (dynamic.arm.engine, dynamic.arm.control, dynamic.arm.live) == ("onnxruntime", "graph", True)
    assert all(c.deployed and c.device == "here" and c.batch_size == 1 and not c.speedups for c in here.cells)
    assert sum(c.primary for c in static) == 1
    assert dynamic.max_error is not None and dynamic.tolerance is not None and dynamic.max_error <= dynamic.tolerance
    assert dynamic.startup is not None and dynamic.startup.load_ms and dynamic.startup.download_ms is None
    assert dynamic.energy is not None and isinstance(dynamic.energy.item_j, Unavailable)
    assert dynamic.again is not None  # the primary baseline against itself
    flops: Any = dynamic.flops
    assert dynamic.ideal == pytest.approx(flops.dense / flops.required_region) and flops.executed > 0
    assert dynamic.path_label and len(set(dynamic.batch_paths)) > 1 and len(dynamic.batch_paths) == dynamic.stream_items


def test_what_deciding_takes_is_known_from_the_same_rounds(here: Run) -> None:
    dynamic = next(c for c in here.cells if c.arm.kind == "strategy")
    known = next(c for c in here.cells if c.arm.kind == "control")
    assert known.arm.without == "deciding" and not known.arm.live and known.group_id == dynamic.group_id
    assert known.rounds == dynamic.rounds and not known.deployed_speedups and known.max_error is not None
    assert dynamic.deployed_waterfall is not None
    found = next(f for f in dynamic.deployed_waterfall.factors if f.name == "deciding")
    totals = here.samples(dynamic.group_id).groupby(["arm", "round"], observed=True)["duration_ns"].sum()
    ratios = totals[dynamic.arm.key].to_numpy() / totals[known.arm.key].to_numpy()
    median = float(np.exp(np.median(np.log(ratios))))
    assert found.value == pytest.approx(median) and found.low <= found.value <= found.high
    assert found.share is not None and found.share_low is not None and found.share_low <= found.share


def test_speedups_are_paired_by_round_and_samples_are_kept(here: Run) -> None:
    dynamic = next(c for c in here.cells if c.arm.kind == "strategy")
    primary = next(c for c in here.cells if c.primary)
    samples = here.samples(dynamic.group_id)
    totals = samples.groupby(["arm", "round"], observed=True)["duration_ns"].sum()
    ratio = median_interval(ratio_of_totals(totals[primary.arm.key].to_numpy(), totals[dynamic.arm.key].to_numpy()))
    found = next(s for s in dynamic.deployed_speedups if s.primary)
    assert (found.value, found.low, found.high) == pytest.approx((ratio.value, ratio.low, ratio.high))
    assert dynamic.latency is not None
    assert dynamic.latency.stream_ms == pytest.approx(float(np.median(totals[dynamic.arm.key])) / 1e6)
    assert samples["start_ns"].is_monotonic_increasing
    assert set(samples["arm"]) == {c.arm.key for c in here.cells} | {primary.arm.model_copy(update={"again": True}).key}


def subject(here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Of the tiny network, as a run makes it."""
    made: list[Subject] = []

    def remember(_: object, __: object, ___: object, ____: object, _____: object, found: Subject) -> None:
        made.append(found)

    monkeypatch.setattr(device_run, "_by_target", remember)
    go(tmp_path / "run", "here")
    return made[0]


def test_emulated_and_broken_arms_have_their_reason(here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = subject(here, tmp_path, monkeypatch)
    table = sent(here) | {"job_id": about.job.job_id}
    arms = [arm | {"rounds": [], "positions": []} for arm in table["arms"]]
    cells, samples = measured(about, Result.model_validate(table | {"emulated": True, "arms": arms}), "qemu")
    assert {c.status for c in cells} == {"refused"} and not samples
    assert all("emulated" in (c.reason or "") and c.max_error is not None for c in cells)
    few = [arm | {"rounds": arm["rounds"][:2], "positions": arm["positions"][:2]} for arm in table["arms"]]
    cells, _ = measured(about, Result.model_validate(table | {"arms": few}), "slow")
    assert {c.reason for c in cells} == {"stopped after 2 rounds; a result needs 5"}
    wrong = [arm if arm["name"] != "dynamic" else arm | {"reason": "answers differ"} for arm in arms]
    wrong[1:] = table["arms"][1:]
    cells, _ = measured(about, Result.model_validate(table | {"arms": wrong}), "wrong")
    assert [(c.status, c.reason) for c in cells if c.arm.kind == "strategy"] == [("failed", "answers differ")]
    joules = {"energy_j": {"dynamic": {"joules_per_item": 0.5, "scope": "module", "estimate": True}}}
    cells, _ = measured(about, Result.model_validate(table | {"readings": joules}), "jetson")
    energy = {c.arm.kind: c.energy for c in cells}
    assert energy["strategy"] is not None and energy["strategy"].item_j == 0.5
    assert energy["strategy"].sensor == "module (an estimate)"
    assert energy["baseline"] is not None and isinstance(energy["baseline"].item_j, Unavailable)


@dataclass
class Vanishing:
    """A device where something happens, as often as there are `errors`; then it is this machine."""

    name: str
    errors: list[BaseException]

    def facts(self) -> dict[str, Any]:
        return {"kind": "ssh"}

    def run(self, job: Path, agent: str, *, deadline_s: float, progress: Callable[[str], None]) -> Path:
        if self.errors:
            raise self.errors.pop()
        return Local(self.name, profile().target).run(job, agent, deadline_s=deadline_s, progress=progress)


def vanishing(monkeypatch: pytest.MonkeyPatch, *errors: BaseException) -> None:
    left = list(errors)

    def choose(name: str, _: DeviceProfile) -> Vanishing:
        return Vanishing(name, left if name == "board" else [])

    monkeypatch.setattr(device_run, "open_target", choose)


def test_a_lost_device_costs_its_own_cells_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vanishing(monkeypatch, Lost("board: it vanished"))
    result = go(tmp_path / "run", "board", "desk")
    run = Run.open(tmp_path / "run")
    assert {(c.device, c.status, c.reason) for c in run.cells} == {
        ("board", "failed", "board: it vanished"),
        ("desk", "ok", None),
    }
    assert list(result.unmeasured.values()) == ["board: it vanished"]
    go(tmp_path / "run", "board", "desk", resume=True, retry_failed=True)
    assert {c.status for c in Run.open(tmp_path / "run").cells} == {"ok"}
    before = (tmp_path / "run" / "cells.jsonl").read_bytes()
    monkeypatch.setattr(device_run, "_compile", None)  # nothing is left to do
    go(tmp_path / "run", "board", "desk", resume=True)
    assert (tmp_path / "run" / "cells.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="begun with other workloads or options"):
        go(tmp_path / "run", "board", resume=True)


def test_after_ctrl_c_what_is_measured_stays_and_resume_measures_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing(monkeypatch, KeyboardInterrupt())
    assert go(tmp_path / "run", "desk", "board").interrupted
    run = Run.open(tmp_path / "run")
    assert run.manifest.status == "interrupted" and {c.device for c in run.cells} == {"desk"}
    assert not go(tmp_path / "run", "desk", "board", resume=True).interrupted
    run = Run.open(tmp_path / "run")
    assert run.manifest.status == "complete" and {c.device for c in run.cells} == {"desk", "board"}
    lines = (tmp_path / "run" / "cells.jsonl").read_text().splitlines()
    assert len(lines) == len(run.cells)  # the desk was not measured again


def test_every_browser_is_a_device_of_its_own(here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = sent(here)

    def collect(_: Browser, jobs: list[Path], out: Path, **__: object) -> Iterator[Received]:
        job = read_job(jobs[0])
        for n, (name, provider, status) in enumerate(
            [("My/Phone", "WebAssembly", "ok"), ("My/Phone", "WebGPU", "failed"), ("Tablet", "WebAssembly", "ok")]
        ):
            agent = table["agent"] | {"name": "browser", "provider": provider, "notes": ["coarse clock"]}
            mine = table | {"job_id": job.job_id, "agent": agent, "status": status, "reason": "no adapter"}
            path = out / str(n) / "result.json"
            path.parent.mkdir()
            path.write_text(json.dumps(mine))
            path.with_name("result.sha256").write_text("0")
            yield Received(path, job.job_id, name, "Chrome 156", provider, Result.model_validate(mine))

    monkeypatch.setattr(Browser, "collect", collect)
    go(tmp_path / "run", "browser", kind="browser", browsers=2)
    run = Run.open(tmp_path / "run")
    assert {(c.device, c.status) for c in run.cells} == {
        ("My Phone (Chrome 156, WebAssembly)", "ok"),
        ("My Phone (Chrome 156, WebGPU)", "failed"),
        ("Tablet (Chrome 156, WebAssembly)", "ok"),
    }
    jobs: Any = run.manifest.devices["Tablet (Chrome 156, WebAssembly)"]["jobs"]
    assert jobs["tiny"]["notes"] == ["coarse clock"]
    assert len(list((run.path / RESULTS).iterdir())) == 2


def test_where_nobody_opens_the_page_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Browser, "collect", lambda *_, **__: iter(()))
    result = go(tmp_path / "run", "browser", kind="browser")
    assert result.unmeasured == {"target browser": "no device opened the page and sent a result"}
    assert Run.open(tmp_path / "run").cells == []


def test_networks_that_cannot_be_compiled_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Written:
        raise UserError("tiny cannot be compiled: an operator is in the way")

    monkeypatch.setattr(device_run, "compile_prepared", refuse)
    with pytest.raises(UserError, match="an operator is in the way"):
        go(tmp_path / "run", "here")
    run = Run.open(tmp_path / "run")
    assert [n.what for n in run.manifest.not_measured] == ["workload tiny"] and not run.cells
