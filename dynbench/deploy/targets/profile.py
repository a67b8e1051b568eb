"""How a device is reached and measured: a file under `hardware/targets/`, or one of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from dynbench.deploy.agents.python_agent import SENSORS
from dynbench.errors import UserError, suggestion
from dynbench.paths import project_dir
from dynbench.reading import read_toml
from dynbench.store.jsonable import first_fault

AGENTS = {
    "local": ("python", "native"),
    "ssh": ("python", "native"),
    "adb": ("python", "native"),
    "browser": ("browser",),
}


class Reach(BaseModel):
    """The table `[target]`.

    Attributes:
        kind: by what the device is reached.
        agent: what measures there.
        host, port, user, identity: of an ssh server; what is not given comes from the user's own ssh configuration. Of
            a browser, host and port are where the page is served.
        serial: of a device by adb, as `adb devices` gives it, or HOST:PORT; empty: ANDROID_SERIAL, or the only one.
        accept_new_host: an ssh server whose key nobody knows yet is believed, and remembered.
        python: the interpreter on the device that has numpy and onnxruntime; None: this one, or `python3` by ssh.
        program: the native agent on this machine, built for the device; None: it is built for this machine.
        runtime_folder: on this machine, with the device's ONNX Runtime: an unpacked release for the native agent, ONNX
            Runtime Web for a browser; None: it is looked for, and that of a browser downloaded.
        folder: on the device, in which each run makes one of its own; None: that for temporary files.
        open: of a browser: a program on this machine that opens the page by itself, without a screen; empty: people do.
        cpus: cores that the agent is pinned to.
        cool_down_s, max_temperature_c: no arm is begun on a hotter device, but it waits no longer than this.
        sensors: of power, the first that can be read is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local", "ssh", "adb", "browser"]
    agent: Literal["python", "native", "browser"] | None = None
    host: str = ""
    port: int = Field(default=0, ge=0, le=65535)
    user: str = ""
    serial: str = ""
    identity: Path | None = None
    accept_new_host: bool = False
    python: str | None = None
    program: Path | None = None
    runtime_folder: Path | None = None
    folder: str | None = None
    open: str = ""
    cpus: list[NonNegativeInt] | None = Field(default=None, min_length=1)
    cool_down_s: float = Field(default=120.0, ge=0, allow_inf_nan=False)
    max_temperature_c: float | None = Field(default=None, gt=0, lt=150)
    sensors: list[str] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Reach:
        if self.kind == "ssh" and not self.host:
            raise ValueError("kind 'ssh' needs a host")
        if any(value.startswith("-") for value in (self.host, self.user, self.serial, self.open)):  # an option
            raise ValueError("host, user, serial and open must not begin with '-'")
        if self.open and self.kind != "browser":
            raise ValueError("open is of kind 'browser'")
        if self.agent and self.agent not in AGENTS[self.kind]:
            known = " or ".join(repr(name) for name in AGENTS[self.kind])
            raise ValueError(f"kind {self.kind!r} measures by the agent {known}, not {self.agent!r}")
        keys = {"python": ("python",), "program": ("native",), "runtime_folder": ("native", "browser")}
        if wrong := [key for key, agents in keys.items() if getattr(self, key) and self.measures not in agents]:
            raise ValueError(f"{wrong[0]} is not of the agent {self.measures!r}, but of {keys[wrong[0]][0]!r}")
        if unknown := [name for name in self.sensors or [] if name not in SENSORS]:
            raise ValueError(f"unknown sensor {unknown[0]!r}; {suggestion(unknown[0], SENSORS)}")
        return self

    @property
    def measures(self) -> str:
        """The agent."""
        return self.agent or AGENTS[self.kind][0]

    def timing(self) -> dict[str, Any]:
        """What a job takes from it: values of `dynbench.deploy.job.Timing`."""
        return self.model_dump(include={"cpus", "cool_down_s", "max_temperature_c", "sensors"})


class DeviceProfile(BaseModel):
    """A device.

    Attributes:
        title: for people.
        source: of the ceilings; needed where there are some.
        ceilings: peak rates according to the data sheet, as in `hardware/*.toml`.
        target: how it is reached.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(min_length=1, max_length=200)
    source: str = ""
    ceilings: dict[str, Any] = Field(default_factory=dict)
    target: Reach

    @model_validator(mode="after")
    def _figures_have_a_source(self) -> DeviceProfile:
        if self.ceilings and not self.source:
            raise ValueError("ceilings need a source")
        return self


def device_files() -> dict[str, Path]:
    """The devices that come with dynbench, by name."""
    found = {path.stem: path for path in (project_dir("hardware") / "targets").glob("*.toml")}
    return dict(sorted(found.items()))


def load_device(path: Path) -> DeviceProfile:
    """Reads a profile; a relative `identity`, `program` or `runtime_folder` starts from the folder of the file.

    Raises:
        UserError: it cannot be read, or a key or value is not accepted.
    """
    try:
        profile = DeviceProfile.model_validate(read_toml(path))
    except ValidationError as e:
        raise UserError(f"{path}: {first_fault(e).replace('value error, ', '')}") from e
    given = {name: getattr(profile.target, name) for name in ("identity", "program", "runtime_folder")}
    here = path.absolute().parent
    found = {name: here / place.expanduser() for name, place in given.items() if place is not None}
    return profile.model_copy(update={"target": profile.target.model_copy(update=found)})
