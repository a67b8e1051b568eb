"""The agent in a browser, in a real one: answers, several at once, and what can happen to a page in the middle."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from dynbench.deploy.agents.browser import runtime as ort_web
from dynbench.deploy.build import compile_bundle
from dynbench.deploy.bundle import check, sha256
from dynbench.deploy.job import Job, Timing, read_job, write_job
from dynbench.deploy.targets import browser_guests
from dynbench.deploy.targets.browser import Browser
from dynbench.deploy.targets.browser_guests import Received
from dynbench.experiment import Options, load_specs
from tests.deploy.test_bundle import TINY
from tests.peers.chromium import PATIENCE_S, PROGRAM, Chromium, Wire

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="neither chromium nor google-chrome is installed"),
    pytest.mark.skipif(
        ort_web.find() is None and shutil.which("npm") is None, reason="neither onnxruntime-web nor npm is installed"
    ),
]
WORKLOADS = ("skipnet38_digits", "idk_digits", "epnet_digits")
QUICK = Timing(batch_sizes=[1, 32], warm_up_s=0.0, rounds_min=1, time_limit_s=0.1, deadline_s=200)
LONG = Timing(batch_sizes=[1], warm_up_s=0.0, rounds_min=1, time_limit_s=3.0, precision=1e-9, deadline_s=200)


@pytest.fixture(scope="session")
def runtime() -> Path:
    """Where ONNX Runtime Web is; it is downloaded where it is not on this machine."""
    return (ort_web.find() or ort_web.obtain()).folder


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of the networks, and of a tiny one."""
    folder = tmp_path_factory.mktemp("bundles")
    specs = load_specs([*WORKLOADS, str(TINY)])
    return {s.name: compile_bundle(s, folder / s.name, Options(batch_sizes=[32])).folder for s in specs}


@pytest.fixture
def tiny(bundles: dict[str, Path], tmp_path: Path) -> Callable[[Timing], Path]:
    """Makes a job of the tiny network."""
    (name,) = bundles.keys() - set(WORKLOADS)

    def make(timing: Timing) -> Path:
        write_job(bundles[name], tmp_path / "job", timing)
        return tmp_path / "job"

    return make


class Run(threading.Thread):
    """Collects results until enough devices have finished."""

    def __init__(self, jobs: list[Path], out: Path, runtime: Path, devices: int = 1) -> None:
        super().__init__(daemon=True)
        self._shown: list[str] = []
        self.target = Browser(host="127.0.0.1", runtime_folder=runtime, show=self._shown.append)
        self.told: list[str] = []
        self.received: list[Received] = []
        self._arguments: Any = (jobs, out)
        self._devices = devices
        self.start()

    def run(self) -> None:
        jobs, out = self._arguments
        collected = self.target.collect(
            jobs, out, devices=self._devices, deadline_s=PATIENCE_S, progress=self.told.append
        )
        for received in collected:
            self.received.append(received)

    @property
    def link(self) -> str:
        """That starts by itself."""
        until(lambda: any("http://" in line for line in self._shown))
        first = next(line for line in self._shown if "http://" in line)
        return f"{first.strip()}?autostart=1&name=Phone"

    def port(self) -> int:
        return int(self.link.split(":")[2].split("/")[0])

    def says(self, *words: str) -> None:
        """Waits until a line holds all of these."""
        until(lambda: any(all(w in line for w in words) for line in list(self.told)), lambda: f"{words}: {self.told}")

    def ends(self) -> list[Received]:
        self.join(PATIENCE_S)
        assert not self.is_alive(), self.told
        return self.received


def until(true: Callable[[], Any], what: Callable[[], object] = lambda: "it does not happen") -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.02)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Chromium]]:
    """Opens browsers, each with a profile of its own, and ends them."""
    started: list[Chromium] = []

    def open_one(link: str, *more: str) -> Chromium:
        started.append(Chromium(link, tmp_path / f"profile{len(started)}", *more))
        return started[-1]

    yield open_one
    for browser in started:
        browser.kill()


def native_errors(bundle: Path) -> dict[str, float]:
    """How far the native runtime's answers are from the expected ones, by graph, relative to the largest value."""
    errors: dict[str, float] = {}
    for c in check(bundle):
        errors[c.file] = max(errors.get(c.file, 0.0), c.error)
    return errors


def shown(page: Chromium, where: str = "text") -> str:
    """What the page says."""
    return str(page.evaluate(f"document.getElementById('{where}')?.textContent"))


def test_networks_answer_and_decide_as_natively_at_batch_1_and_32(
    bundles: dict[str, Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    jobs = {name: write_job(bundles[name], tmp_path / name, QUICK) for name in WORKLOADS}
    run = Run([tmp_path / name for name in WORKLOADS], tmp_path / "out", runtime)
    opened(run.link)
    received = run.ends()
    assert [r.job_id for r in received] == [job.job_id for job in jobs.values()]
    for name, r in zip(WORKLOADS, received, strict=True):
        job, result, native = jobs[name], r.result, native_errors(bundles[name])
        assert result.status == "ok", result.reason
        lanes = [(arm.name, size) for size in (1, 32) for arm in job.arms]
        assert [(c.arm, c.batch_size) for c in result.checks] == [(a.name, a.batch_size) for a in result.arms] == lanes
        for c in result.checks:
            arm = next(a for a in job.arms if a.name == c.arm)
            file = (c.batch_size == 1 and arm.graphs.single) or arm.graphs.any
            assert isinstance(c.error, float) and c.error + native[file] <= 1e-5, (name, c)
            assert c.decisions_differ == 0 and bool(c.decisions) == bool(arm.decisions), (name, c)
        for a in result.arms:
            assert a.reason is None and a.rounds and len(a.rounds[0]) == job.input.items // a.batch_size
            assert a.load_ms and a.first_run_ms and a.download_ms
        assert result.agent.provider == "WebAssembly" and result.agent.runtime_version == ort_web.TESTED
        assert "headless" in str(result.device.browser) and any("headless" in note for note in result.agent.notes)
        assert result.memory_bytes and result.device.name == "Phone"


def test_on_an_insecure_address_it_measures_too_and_says_what_is_missing(
    tiny: Callable[[Timing], Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    run = Run([tiny(Timing(**QUICK.model_dump() | {"threads": 2, "batch_sizes": [1]}))], tmp_path / "out", runtime)
    link = run.link.replace("127.0.0.1", "phone.test")
    page = opened(link, "--host-resolver-rules=MAP phone.test 127.0.0.1")
    (received,) = run.ends()
    assert page.evaluate("[isSecureContext, crossOriginIsolated, typeof crypto.subtle]") == [False, False, "undefined"]
    result = received.result
    assert result.status == "ok" and result.threads == 1 and all(a.rounds for a in result.arms)
    notes = "; ".join(result.agent.notes)
    for said in ("1 thread, not 2", "insecure address", "a wake lock needs https", "is the mean of"):
        assert said in notes, notes


def test_where_the_page_is_isolated_it_has_the_threads_of_the_job(
    tiny: Callable[[Timing], Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    run = Run([tiny(Timing(**QUICK.model_dump() | {"threads": 2, "batch_sizes": [1]}))], tmp_path / "out", runtime)
    page = opened(run.link)
    (received,) = run.ends()
    assert page.evaluate("[isSecureContext, crossOriginIsolated]") == [True, True]
    assert received.result.threads == 2 and all(c.decisions_differ == 0 for c in received.result.checks)


def test_an_arm_that_answers_otherwise_or_a_changed_file_is_not_timed(
    tiny: Callable[[Timing], Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    folder = tiny(QUICK)
    job = read_job(folder)
    answer = folder / job.arms[0].answers[0].file
    np.save(answer, np.load(answer) + 1)
    other = shutil.copytree(folder, tmp_path / "other")
    rewrite(folder, sha256=dict(job.sha256) | {job.arms[0].answers[0].file: sha256(answer.read_bytes())})
    rewrite(other, job_id="f" * 32)
    run = Run([folder, other], tmp_path / "out", runtime)
    opened(run.link)
    wrong, changed = run.ends()
    assert wrong.result.status == "ok"
    for a in wrong.result.arms:
        assert (a.reason is not None and "answers differ" in a.reason) == (a.name == job.arms[0].name)
        assert bool(a.rounds) == (a.reason is None)
    assert changed.result.status == "failed" and "was changed: its sha256 differs" in str(changed.result.reason)


def rewrite(folder: Path, **changes: Any) -> Job:
    """Changes `job.json`."""
    file = folder / "job.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return read_job(folder)


def test_an_operator_traps_on_no_rows_and_a_guarded_one_does_not(
    bundles: dict[str, Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    """At batch 1 the graph for any batch goes on with no rows once its item has left, unless an If keeps it from that.

    EPNet looks for the largest scores behind every block, and TopK of no rows divides by zero in WebAssembly.
    """
    name = "epnet_digits"
    job = write_job(bundles[name], tmp_path / "job", Timing(**QUICK.model_dump() | {"batch_sizes": [1]}))
    asked = [np.load(tmp_path / "job" / d.reached) for d in job.arms[0].decisions]
    assert not all(reached.all() for reached in asked)  # so that there are empty sets
    bare = bare_top_scores(job.input.item_shape)
    (tmp_path / "job" / "bare.onnx").write_bytes(bare)
    guarded = job.arms[0].model_dump(mode="json") | {"graphs": {"any": job.arms[0].graphs.any}}
    arms = [guarded, guarded | {"name": "bare", "graphs": {"any": "bare.onnx"}, "decisions": []}]
    rewrite(tmp_path / "job", arms=arms, sha256=dict(job.sha256) | {"bare.onnx": sha256(bare)})
    run = Run([tmp_path / "job"], tmp_path / "out", runtime)
    opened(run.link)
    (received,) = run.ends()
    with_guards, without = received.result.arms
    assert with_guards.reason is None and with_guards.rounds
    assert received.result.checks[0].decisions and received.result.checks[0].decisions_differ == 0
    assert without.reason is not None and "divide by zero" in without.reason and not without.rounds


def bare_top_scores(item_shape: list[int]) -> bytes:
    """A graph with a TopK of no rows, which the native runtime computes."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "zero"], ["rows"]),
        helper.make_node("Flatten", ["rows"], ["scores"]),
        helper.make_node("TopK", ["scores", "two"], ["answer", "which"]),
    ]
    constants = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("zero", 0), ("two", 2))]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *item_shape])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["m", 2])
    graph = helper.make_graph(nodes, "bare", [x], [answer], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    native = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = native.run(["answer"], {"x": np.ones((1, *item_shape), np.float32)})
    assert found.shape == (0, 2)
    return content


def test_two_browsers_finish_though_a_third_is_killed_in_the_middle(
    tiny: Callable[[Timing], Path],
    runtime: Path,
    opened: Callable[..., Chromium],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(browser_guests, "SILENT_S", 2.5)
    run = Run([tiny(LONG)], tmp_path / "out", runtime, devices=2)
    opened(run.link)
    victim = opened(run.link.replace("Phone", "Victim"))
    opened(run.link)
    until(lambda: "round" in shown(victim))
    victim.kill()
    received = run.ends()
    assert sorted(r.device for r in received) == ["Phone", "Phone (2)"]
    assert all(r.result.status == "ok" and r.result.arms[0].rounds for r in received)
    assert all(r.path.is_file() for r in received)
    run.says("Victim", "nothing was heard")
    run.says("Victim", "did not finish")


def test_a_page_reloaded_in_the_middle_starts_again_as_the_same_device(
    tiny: Callable[[Timing], Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    run = Run([tiny(LONG)], tmp_path / "out", runtime)
    page = opened(run.link)
    until(lambda: "round" in shown(page))
    page.reload()
    (received,) = run.ends()
    assert received.device == "Phone" and received.result.arms[0].rounds
    run.says("Phone", "its page was closed")
    assert sum("opened the page" in line for line in run.told) == 1


def test_what_was_measured_while_the_connection_was_lost_is_sent_again(
    tiny: Callable[[Timing], Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    run = Run([tiny(LONG)], tmp_path / "out", runtime)
    wire = Wire(run.port())
    page = opened(run.link.replace(str(run.port()), str(wire.port)))
    until(lambda: "round" in shown(page))
    wire.cut()
    until(lambda: "sent again" in shown(page, "sending"))
    kept = page.evaluate("Object.keys(localStorage).filter((key) => key.includes('/wasm/')).length")
    assert kept == 1 and run.received == []
    wire.mend()
    (received,) = run.ends()
    assert received.result.status == "ok" and received.result.arms[0].rounds
    until(lambda: "Done" in shown(page))
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('/wasm/')).length") == 0
    wire.cut()


def test_a_hidden_page_waits_and_drops_the_round_that_was_interrupted(
    tiny: Callable[[Timing], Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    run = Run([tiny(LONG)], tmp_path / "out", runtime)
    page = opened(run.link)
    until(lambda: "round" in shown(page))
    become = "Object.defineProperty(document, 'visibilityState', {value: STATE, configurable: true});"
    become += "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(become.replace("STATE", "'hidden'"))
    until(lambda: "waiting: this page is hidden" in shown(page))
    page.evaluate(become.replace("STATE", "'visible'"))
    (received,) = run.ends()
    assert any("the page was hidden 1 times" in note for note in received.result.agent.notes)
    assert all(a.rounds for a in received.result.arms)


def test_where_the_browser_has_webgpu_it_is_a_second_result_that_names_what_it_leaves_to_the_cpu(
    tiny: Callable[[Timing], Path], runtime: Path, opened: Callable[..., Chromium], tmp_path: Path
) -> None:
    """By a graphics adapter in software, so answers only: its times mean nothing."""
    job = tiny(QUICK)
    run = Run([job], tmp_path / "out", runtime)
    opened(run.link, "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
    wasm, webgpu = run.ends()
    assert (wasm.provider, webgpu.provider) == ("WebAssembly", "WebGPU")
    assert webgpu.result.status == "ok" and wasm.device == webgpu.device == "Phone"
    for c in webgpu.result.checks:
        assert isinstance(c.error, float) and c.error <= 1e-4 and c.decisions_differ == 0, c
    placed = [note for note in webgpu.result.agent.notes if note.startswith("placement: ")]
    graphs = [f for arm in read_job(job).arms for f in (arm.graphs.single, arm.graphs.any) if f]
    assert len(placed) == len(graphs) and all(any(f" {f}," in note for note in placed) for f in graphs)
    assert all("nodes on the GPU; on the CPU: " in note for note in placed)
    assert any("dynamic.onnx" in note and "NonZero" in note.partition("on the CPU")[2] for note in placed)
    assert not any(note.startswith("placement") for note in wasm.result.agent.notes)
