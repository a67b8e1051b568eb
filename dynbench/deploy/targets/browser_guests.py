"""The devices that opened the page: what they say while they measure, and the results they send."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dynbench.deploy.bundle import sha256
from dynbench.deploy.job import RESULT, RESULT_SHA256, Job, Result
from dynbench.deploy.targets.browser_server import Refused
from dynbench.errors import UserError
from dynbench.escape import terminal
from dynbench.files import make_folder, write_bytes
from dynbench.reading import parse_json
from dynbench.store.jsonable import first_fault

MOST_GUESTS = 64
SILENT_S = 15.0  # a page says something every second
SAY_EVERY_S = 10.0  # about a device that goes on as before
CLIENT = r"^[0-9a-f]{32}$"


class Said(BaseModel):
    """What a page says of itself every second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client: Annotated[str, Field(pattern=CLIENT)]
    name: Annotated[str, Field(min_length=1, max_length=60)]
    browser: Annotated[str, Field(min_length=1, max_length=100)]
    state: Literal["waiting", "measuring", "hidden", "sending", "done", "left"]
    text: Annotated[str, Field(max_length=300)]
    share: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    left_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


@dataclass(frozen=True)
class Received:
    """A result that came.

    Attributes:
        path: where it lies; its sha256 is in the file beside it.
        job_id: which job it is of.
        device: the name its user gave, numbered where another device has it too.
        browser: what it was measured in.
        provider: 'WebAssembly' or 'WebGPU'.
        result: what it says.
    """

    path: Path
    job_id: str
    device: str
    browser: str
    provider: str
    result: Result


@dataclass
class Guest:
    """One page: a tab of a browser on some device."""

    name: str
    browser: str
    state: str = "waiting"
    heard: float = field(default_factory=time.monotonic)
    told: float = 0.0
    silent: bool = False
    came: set[tuple[str, str]] = field(default_factory=set)  # job and provider of what it sent

    @property
    def label(self) -> str:
        """How it is called on the terminal."""
        return terminal(f"{self.name} ({self.browser})")


class Guests:
    """Takes what pages send, from several threads at once.

    Args:
        jobs: what is measured, by id.
        out: a folder for the results.
        say: is told, in one sentence each, what happens.
    """

    def __init__(self, jobs: Mapping[str, Job], out: Path, say: Callable[[str], None]) -> None:
        self._jobs = jobs
        self._out = out
        self._say = say
        self._guests: dict[str, Guest] = {}
        self._lock = threading.Lock()
        self.received: queue.Queue[Received] = queue.Queue()

    def progress(self, body: bytes, _: dict[str, str]) -> dict[str, str]:
        """Answers what a page says with the name by which its device is known.

        Raises:
            Refused: it is malformed, or there are too many pages.
        """
        try:
            said = Said.model_validate(_json(body))
        except ValidationError as e:
            raise Refused(f"this is no progress: {first_fault(e)}") from e
        with self._lock:
            guest = self._guest(said.client, said.name, said.browser)
            now = time.monotonic()
            changed = said.state != guest.state
            if guest.silent and said.state != "left":
                self._say(f"{guest.label} is back")
            guest.state, guest.heard, guest.silent = said.state, now, False
            if changed or (said.state == "measuring" and now - guest.told >= SAY_EVERY_S):
                guest.told = now
                self._say(f"{guest.label}: {_sentence(said)}")
            return {"name": guest.name}

    def result(self, body: bytes, parameters: dict[str, str]) -> dict[str, bool]:
        """Stores a result, once; the same page may send it again.

        Raises:
            Refused: it is malformed, or of another job.
            UserError: it cannot be written.
        """
        client = parameters.get("client", "")
        result = self._checked(client, body)
        key = (result.job_id, result.agent.provider)
        with self._lock:
            guest = self._guest(client, result.device.name, result.device.browser or "unknown browser")
            if key in guest.came:
                return {"stored": True}
            named = result.model_copy(update={"device": result.device.model_copy(update={"name": guest.name})})
            content = named.model_dump_json().encode()
            number = sum(len(g.came) for g in self._guests.values())
            path = self._out / f"{number:03d}" / RESULT
            try:
                make_folder(path.parent)
                write_bytes(path, content)
                write_bytes(path.with_name(RESULT_SHA256), f"{sha256(content)}\n".encode())
            except UserError as e:
                self._say(f"{guest.label}: its result cannot be stored: {e}; it will be sent again")
                raise
            guest.came.add(key)
            guest.heard = time.monotonic()
            what = "a result" if result.status == "ok" else f"failed: {terminal(result.reason or '')}:"
            self._say(f"{guest.label}: {what} of {self._jobs[result.job_id].workload} by {result.agent.provider}")
            self.received.put(Received(path, result.job_id, guest.name, guest.browser, result.agent.provider, named))
        return {"stored": True}

    def look(self) -> int:
        """Says who fell silent, and counts the devices that are finished."""
        with self._lock:
            now = time.monotonic()
            for guest in self._guests.values():
                if guest.state not in ("done", "left") and not guest.silent and now - guest.heard > SILENT_S:
                    guest.silent = True
                    self._say(
                        f"{guest.label}: nothing was heard for {SILENT_S:.0f} s: it sleeps, was closed, or is out of "
                        "reach; wake it and open the page again"
                    )
            return sum(self._finished(guest) for guest in self._guests.values())

    def missing(self) -> list[str]:
        """Devices that began and did not finish, for people."""
        with self._lock:
            return [guest.label for guest in self._guests.values() if not self._finished(guest)]

    def _finished(self, guest: Guest) -> bool:
        if guest.state == "done":
            return bool(guest.came)
        gone = guest.silent or guest.state == "left"
        return gone and {job_id for job_id, _ in guest.came} == set(self._jobs)

    def _guest(self, client: str, name: str, browser: str) -> Guest:
        if client not in self._guests:
            if len(self._guests) >= MOST_GUESTS:
                raise Refused(f"{MOST_GUESTS} pages take part already")
            taken = {guest.name for guest in self._guests.values()}
            numbered = next(n for n in (name, *(f"{name} ({i})" for i in range(2, MOST_GUESTS + 2))) if n not in taken)
            self._guests[client] = guest = Guest(numbered, browser)
            self._say(f"{guest.label} opened the page")
        return self._guests[client]

    def _checked(self, client: str, body: bytes) -> Result:
        if len(client) != 32 or client.strip("0123456789abcdef"):
            raise Refused("the sender does not say which page it is")
        try:
            result = Result.model_validate(_json(body))
        except ValidationError as e:
            raise Refused(f"this is no result: {first_fault(e)}") from e
        if (job := self._jobs.get(result.job_id)) is None:
            raise Refused("this is a result of another job")
        try:
            result.of(job)
        except ValueError as e:
            raise Refused(f"this is no result: {e}") from e
        if result.agent.name != "browser" or result.agent.provider not in ("WebAssembly", "WebGPU"):
            raise Refused("this is no result of a browser")
        return result


def _json(body: bytes) -> object:
    try:
        return parse_json(body, "the body")
    except UserError as e:
        raise Refused(str(e)) from e


def _sentence(said: Said) -> str:
    share = "" if said.share is None else f", {100 * min(said.share, 1):.0f} %"
    match said.state:
        case "measuring":
            return terminal(said.text) + share
        case "hidden":
            return "its page is hidden, which pauses it; show it again"
        case "left":
            return "its page was closed"
        case _:
            return terminal(said.text)
