"""What pages send: it is checked, stored once, and told apart by device."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from dynbench.deploy.bundle import sha256
from dynbench.deploy.job import Result, read_job
from dynbench.deploy.targets import browser_guests
from dynbench.deploy.targets.browser_guests import Guests, Received
from dynbench.deploy.targets.browser_server import Refused
from dynbench.errors import UserError
from tests.deploy import browser_jobs
from tests.deploy.browser_jobs import CLIENT, JOB_ID, result, said

OTHER = "d" * 32


class Here:
    """Guests of one job, and what was said about them."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.told: list[str] = []
        job = read_job(browser_jobs.write(folder / "job"))
        self.guests = Guests({job.job_id: job}, self.out, self.told.append)

    def send(self, client: str = CLIENT, **changes: Any) -> Received:
        self.guests.result(json.dumps(result(**changes)).encode(), {"client": client})
        return self.guests.received.get_nowait()

    def refused(self, body: object, client: str = CLIENT) -> str:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        with pytest.raises(Refused) as e:
            self.guests.result(raw, {"client": client} if client else {})
        assert self.guests.received.empty() and not self.out.exists()
        return str(e.value)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def test_a_result_is_stored_with_the_hash_that_proves_it(here: Here) -> None:
    received = here.send()
    content = received.path.read_bytes()
    assert received.path.with_name("result.sha256").read_text().strip() == sha256(content)
    stored = Result.model_validate_json(content)
    assert stored == received.result and stored.arms[0].rounds == [[5, 6], [7, 8]]
    assert (received.device, received.browser, received.provider) == ("Phone", "Chrome 156", "WebAssembly")
    assert "Phone (Chrome 156): a result of made_up by WebAssembly" in here.told


def test_the_same_result_sent_again_is_taken_and_stored_once(here: Here) -> None:
    here.send()
    body = json.dumps(result()).encode()
    assert here.guests.result(body, {"client": CLIENT}) == {"stored": True}
    assert here.guests.received.empty()
    assert [path.name for path in here.out.iterdir()] == ["000"]


def test_devices_of_one_name_are_numbered(here: Here) -> None:
    assert here.guests.progress(said(), {}) == {"name": "Phone"}
    assert here.guests.progress(said(client=OTHER), {}) == {"name": "Phone (2)"}
    assert here.guests.progress(said(client=OTHER), {}) == {"name": "Phone (2)"}
    assert here.send(OTHER).result.device.name == "Phone (2)"
    assert here.send(CLIENT).result.device.name == "Phone"


def test_a_page_sends_one_result_for_each_provider(here: Here) -> None:
    agent = result()["agent"]
    for provider in ("WebAssembly", "WebGPU"):
        assert here.send(agent=agent | {"provider": provider}).provider == provider


def with_arm(**changes: Any) -> dict[str, Any]:
    """A result of which the first arm is another."""
    arms = result()["arms"]
    return result(arms=[arms[0] | changes, arms[1]])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "valid dictionary"),
        (json.dumps(result()).replace("1.5", "NaN").encode(), "NaN is not a number of JSON"),
        (json.dumps(result()).replace("1.5", "Infinity").encode(), "Infinity is not a number of JSON"),
        (json.dumps(result()).replace("1.5", "1e999").encode(), "load_ms: input should be a finite number"),
        (result(job_id="f" * 32), "another job"),
        (result(job_id="../../../etc/passwd"), "job_id"),
        (result(schema_version=2), "schema_version"),
        (result(more=1), "more: extra inputs"),
        (result(agent=result()["agent"] | {"name": "python"}), "no result of a browser"),
        (result(agent=result()["agent"] | {"provider": "CUDA"}), "no result of a browser"),
        (result(agent=result()["agent"] | {"notes": ["x" * 10_000]}), "agent.notes.0"),
        (result(device=result()["device"] | {"name": ""}), "device.name"),
        (result(status="failed"), "no reason is given"),
        (result(emulated=True), "it was emulated, and holds times"),
        (with_arm(name="evil"), "no arm 'evil' at batch 2"),
        (with_arm(batch_size=3), "no arm 'dynamic' at batch 3"),
        (with_arm(name="plain"), "an arm is there twice"),
        (with_arm(rounds=[[0, 5], [7, 8]]), "rounds.0.0: input should be greater than 0"),
        (with_arm(rounds=[[5, 6], [7]]), "different numbers of batches"),
        (with_arm(rounds=[[5], [7]]), "do not cover the stream"),
        (with_arm(positions=[0]), "2 rounds, but 1 positions"),
    ],
)
def test_what_is_no_result_is_refused_and_nothing_is_stored(here: Here, body: object, why: str) -> None:
    assert why in here.refused(body)


@pytest.mark.parametrize("client", ["", "c" * 31, "C" * 32, "../" * 10 + "xx", "c" * 33])
def test_a_result_must_say_which_page_it_is_from(here: Here, client: str) -> None:
    assert here.refused(result(), client) == "the sender does not say which page it is"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"client": "x"}, "client"),
        ({"name": ""}, "name"),
        ({"name": "n" * 61}, "name"),
        ({"state": "root"}, "state"),
        ({"text": "x" * 301}, "text"),
        ({"share": -1}, "share"),
        ({"left_s": "soon"}, "left_s"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_no_progress_is_refused(here: Here, change: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=f"this is no progress: {why}"):
        here.guests.progress(said(**change), {})
    assert here.told == []


def test_what_a_page_says_cannot_change_the_terminal(here: Here) -> None:
    here.guests.progress(said(name="\x1b[2Jx", browser="\u202eevil", text="a\r\nb"), {})
    assert here.told[0] == "\\x1b[2Jx (\\u202eevil) opened the page"
    assert all(line.isprintable() for line in here.told)


def test_pages_are_limited(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_guests, "MOST_GUESTS", 2)
    for client in ("1" * 32, "2" * 32):
        here.guests.progress(said(client=client), {})
    with pytest.raises(Refused, match="2 pages take part already"):
        here.guests.progress(said(client="3" * 32), {})
    here.guests.progress(said(client="1" * 32), {})


def test_a_silent_device_is_told_once_and_counts_when_its_results_are_there(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.guests.progress(said(), {})
    monkeypatch.setattr(browser_guests, "SILENT_S", -1.0)
    assert (here.guests.look(), here.guests.look()) == (0, 0)
    assert sum("nothing was heard" in line for line in here.told) == 1
    assert here.guests.missing() == ["Phone (Chrome 156)"]
    here.guests.progress(said(), {})
    assert here.told[-1] == "Phone (Chrome 156) is back"
    here.send()
    assert here.guests.look() == 1 and here.guests.missing() == []


def test_a_device_has_finished_when_its_page_says_so_and_results_came(here: Here) -> None:
    here.guests.progress(said(state="done"), {})
    assert here.guests.look() == 0
    here.send()
    assert here.guests.look() == 1


def test_a_closed_page_is_not_awaited(here: Here) -> None:
    here.guests.progress(said(state="left"), {})
    assert here.told[-1] == "Phone (Chrome 156): its page was closed"
    assert here.guests.look() == 0 and here.guests.missing() == ["Phone (Chrome 156)"]


def test_a_result_that_cannot_be_written_is_told_and_can_be_sent_again(here: Here) -> None:
    here.out.write_text("no folder")
    with pytest.raises(UserError):
        here.guests.result(json.dumps(result()).encode(), {"client": CLIENT})
    assert "its result cannot be stored" in here.told[-1]
    here.out.unlink()
    assert here.send().path.is_file()


def test_many_pages_at_once_lose_nothing(here: Here) -> None:
    def page(i: int) -> None:
        client = f"{i:032x}"
        here.guests.progress(said(client=client), {})
        here.guests.result(json.dumps(result()).encode(), {"client": client})

    threads = [threading.Thread(target=page, args=(i,)) for i in range(20)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    came = [here.guests.received.get_nowait() for _ in threads]
    assert len({r.device for r in came}) == len({r.path for r in came}) == 20
    assert {r.job_id for r in came} == {JOB_ID}
