"""The target `browser`: what it serves, how it ends, what `doctor` says; pages are played by the test."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import segno

from dynbench.deploy.agents.browser import runtime as ort_web
from dynbench.deploy.job import Result
from dynbench.deploy.targets import browser_address
from dynbench.deploy.targets.base import Failed, Lost
from dynbench.deploy.targets.browser import STATIC, Browser
from dynbench.errors import UserError
from tests.deploy import browser_jobs
from tests.deploy.browser_jobs import JOB_ID, result, said

AGENT = Path(ort_web.__file__).parent
OTHER_JOB = "e" * 32


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with made-up files of another version than the tested one."""
    monkeypatch.setenv("DYNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DYNBENCH_ORT_WEB", raising=False)
    folder = tmp_path / "runtime"
    folder.mkdir()
    for names in ort_web.FILES.values():
        for name in names:
            (folder / name).write_text("/*!\n * ONNX Runtime Web v1.2.3\n */")
    return folder


class Collected:
    """A target that collects in the background, and the requests of a page."""

    def __init__(self, folder: Path, runtime: Path, devices: int | None, deadline_s: float = 30, **more: Any) -> None:
        self.shown: list[str] = []
        self.told: list[str] = []
        self.came: list[Result] = []
        self._ready = threading.Event()
        jobs = [browser_jobs.write(folder / "a"), browser_jobs.write(folder / "b", OTHER_JOB)]
        target = Browser(host="127.0.0.1", runtime_folder=runtime, show=self._show, **more)
        collected = target.collect(
            jobs, folder / "out", devices=devices, deadline_s=deadline_s, progress=self.told.append
        )

        def collect() -> None:
            self.came.extend(received.result for received in collected)

        self._thread = threading.Thread(target=collect, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def _show(self, line: str) -> None:
        self.shown.append(line)
        if "http://" in line:
            self._ready.set()

    @property
    def link(self) -> str:
        return next(line.strip() for line in self.shown if "http://" in line)

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.link + path, timeout=20) as answer:
            content: bytes = answer.read()
            return content

    def post(self, path: str, body: bytes) -> Any:
        with urllib.request.urlopen(self.link + path, body, timeout=20) as answer:
            return json.loads(answer.read())

    def page(self, client: str) -> None:
        """A device that opens the page, sends both results, and is done."""
        self.post("progress", said(client=client))
        for job_id in (JOB_ID, OTHER_JOB):
            self.post(f"result?client={client}", json.dumps(result(job_id=job_id)).encode())
        self.post("progress", said(client=client, state="done"))

    def end(self) -> list[Result]:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.came


def test_everything_the_page_asks_for_is_served_and_nothing_else_of_the_disk(tmp_path: Path, runtime: Path) -> None:
    run = Collected(tmp_path, runtime, devices=None, deadline_s=2)
    assert b'src="page.js"' in run.get("")
    for name in STATIC[1:]:
        assert run.get(name) == (AGENT / name).read_bytes()
    setup = json.loads(run.get("setup.json"))
    assert [job["job_id"] for job in setup["jobs"]] == [JOB_ID, OTHER_JOB]
    assert setup["runtime"]["version"] == "1.2.3" and list(setup["runtime"]["files"]) == ["wasm", "webgpu"]
    for names in setup["runtime"]["files"].values():
        assert all(run.get(f"runtime/{name}") for name in names)
    assert run.get(f"jobs/{OTHER_JOB}/expected/000.npy") == b"right"
    for name in ("runtime.py", "__init__.py", "job.json", f"jobs/{JOB_ID}/job.json", f"jobs/{JOB_ID}/../b/job.json"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            run.get(name)
    assert run.end() == []


def test_without_webgpu_its_files_are_not_served(tmp_path: Path, runtime: Path) -> None:
    run = Collected(tmp_path, runtime, devices=None, deadline_s=1, webgpu=False)
    assert list(json.loads(run.get("setup.json"))["runtime"]["files"]) == ["wasm"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        run.get(f"runtime/{ort_web.FILES['webgpu'][0]}")
    run.end()


def test_it_ends_when_so_many_devices_have_finished(tmp_path: Path, runtime: Path) -> None:
    run = Collected(tmp_path, runtime, devices=2)
    threads = [threading.Thread(target=run.page, args=(f"{i:032x}",)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    came = run.end()
    assert sorted((r.device.name, r.job_id) for r in came) == sorted(
        (name, job_id) for name in ("Phone", "Phone (2)") for job_id in (JOB_ID, OTHER_JOB)
    )


def test_at_the_deadline_what_came_is_kept_and_who_is_missing_is_told(tmp_path: Path, runtime: Path) -> None:
    run = Collected(tmp_path, runtime, devices=2, deadline_s=1.5)
    run.page("1" * 32)
    run.post("progress", said(client="2" * 32, name="Slow"))
    assert len(run.end()) == 2
    assert run.told[-1] == "Slow (Chrome 156): did not finish"


def test_the_link_and_its_qr_code_are_shown(tmp_path: Path, runtime: Path) -> None:
    run = Collected(tmp_path, runtime, devices=None, deadline_s=1)
    run.end()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22,}/", run.link)
    assert browser_address.qr_code(run.link) in run.shown
    assert "Ctrl-C ends it" in run.shown[-1]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_keeps_what_came(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    target = Browser(host="127.0.0.1", runtime_folder=runtime, show=lambda _: None)
    monkeypatch.setattr("dynbench.deploy.targets.browser.Guests.look", interrupted)
    jobs = [browser_jobs.write(tmp_path / "a")]
    assert list(target.collect(jobs, tmp_path / "out", devices=1, deadline_s=30, progress=told.append)) == []
    assert told == ["ended by Ctrl-C; what came is kept"]


def run_with_page(folder: Path, runtime: Path, sent: dict[str, Any] | None, deadline_s: float = 20) -> Path:
    """`run`, with a page that sends this."""

    def play(line: str) -> None:
        if "http://" in line and sent is not None:
            link = f"{line.strip()}result?client={'1' * 32}"
            body = json.dumps(sent).encode()
            threading.Thread(target=urllib.request.urlopen, args=(link, body), daemon=True).start()

    target = Browser(host="127.0.0.1", runtime_folder=runtime, show=play)
    job = browser_jobs.write(folder / "a")
    return target.run(job, "browser", deadline_s=deadline_s, progress=lambda _: None)


def test_run_gives_the_first_result(tmp_path: Path, runtime: Path) -> None:
    path = run_with_page(tmp_path, runtime, result())
    assert Result.model_validate_json(path.read_bytes()).device.name == "Phone"


def test_a_device_that_could_not_measure_has_failed_and_one_that_never_came_is_lost(
    tmp_path: Path, runtime: Path
) -> None:
    failed = result(status="failed", reason="no memory", checks=[], arms=[])
    with pytest.raises(Failed, match="Phone: no memory"):
        run_with_page(tmp_path / "1", runtime, failed)
    with pytest.raises(Lost, match="no device sent a result within 1 s"):
        run_with_page(tmp_path / "2", runtime, None, deadline_s=1)
    with pytest.raises(UserError, match="measures by the agent 'browser', not 'python'"):
        Browser().run(tmp_path, "python", deadline_s=1, progress=print)


def steps(target: Browser) -> dict[str, tuple[str, str, str]]:
    return {step.name: (step.level, step.text, step.remedy) for step in target.doctor()}


def test_doctor_says_step_by_step_what_works(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynbench.deploy.targets.browser.lan_addresses", lambda: ["192.0.2.5"])
    found = steps(Browser(runtime_folder=runtime))
    assert list(found) == ["runtime", "port", "network", "firewall", "secure address"]
    assert found["runtime"][0] == "note" and "1.2.3" in found["runtime"][1] and ort_web.TESTED in found["runtime"][1]
    assert found["port"][0] == "ok" and found["network"][:2] == (
        "ok",
        "other devices reach this machine at 192.0.2.5",
    )
    assert "ufw allow" in found["firewall"][2]


def test_doctor_says_what_is_missing_and_the_remedy(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dynbench.deploy.targets.browser.lan_addresses", list)
    found = steps(Browser())
    assert found["runtime"][0] == "note" and "npm install onnxruntime-web@" in found["runtime"][2]
    assert found["network"][0] == "missing" and found["network"][2]
    found = steps(Browser(runtime_folder=tmp_path / "none"))
    assert found["runtime"][0] == "missing"
    with pytest.raises(UserError):
        Browser(runtime_folder=tmp_path / "none").facts()
    found = steps(Browser(host="192.0.2.77", runtime_folder=runtime))
    assert found["port"][0] == "missing" and "choose another `port`" in found["port"][1]


def test_links_lead_to_all_addresses_or_to_the_one_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_address, "lan_addresses", lambda: ["192.0.2.5", "198.51.100.6"])
    hosts = ["192.0.2.5", "198.51.100.6", "localhost"]
    assert browser_address.links("", 80, "t") == [f"http://{host}:80/t/" for host in hosts]
    assert browser_address.links("fd00::1", 80, "t") == ["http://[fd00::1]:80/t/"]


def test_a_qr_code_holds_the_link() -> None:
    link = "http://192.0.2.5:8000/abc/"
    rows = browser_address.qr_code(link).splitlines()
    matrix = [list(row) for row in segno.make(link, error="l", micro=False).matrix_iter(border=2)]
    halves = {" ": (1, 1), "█": (0, 0), "▀": (0, 1), "▄": (1, 0)}  # light modules are drawn, on a dark ground
    drawn: list[list[int]] = []
    for row in rows:
        drawn += [[halves[c][half] for c in row] for half in (0, 1)]
    assert drawn[: len(matrix)] == matrix


def test_lan_addresses_leave_out_bridges_and_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    from types import SimpleNamespace as Some

    def v4(address: str) -> Some:
        return Some(family=socket.AF_INET, address=address)

    addresses = {
        "lo": [v4("127.0.0.1")],
        "docker0": [v4("172.17.0.1")],
        "eth0": [v4("192.0.2.5"), Some(family=socket.AF_INET6, address="fe80::1")],
        "eth1": [v4("169.254.3.4")],
        "wlan0": [v4("192.0.2.6")],
        "down0": [v4("192.0.2.7")],
    }
    monkeypatch.setattr(browser_address.psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(browser_address.psutil, "net_if_stats", lambda: {"down0": Some(isup=False)})
    monkeypatch.setattr(browser_address, "_outward", lambda: "192.0.2.6")
    assert browser_address.lan_addresses() == ["192.0.2.6", "192.0.2.5"]


@pytest.mark.parametrize("name", [*STATIC])
def test_the_page_names_no_other_host_and_no_code_in_text(name: str) -> None:
    content = (AGENT / name).read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+", content)
    assert not re.search(r"\beval\(|new Function|innerHTML|document\.write|insertAdjacentHTML", content)
    imported = re.findall(r"""from "\./([\w.]+)"|new Worker\("([\w.]+)"|(?:src|href)="([\w.]+)\"""", content)
    assert {next(filter(None, groups)) for groups in imported} <= set(STATIC)


def test_all_files_of_the_page_are_served() -> None:
    there = {path.name for path in AGENT.iterdir() if path.suffix in (".html", ".css", ".js")}
    assert there == set(STATIC)
