"""From a name on the command line to a target."""

from __future__ import annotations

from pathlib import Path

from dynbench.deploy.targets.base import Target
from dynbench.deploy.targets.profile import DeviceProfile, device_files, load_device
from dynbench.errors import UserError, suggestion


def find_device(reference: str) -> tuple[str, DeviceProfile]:
    """A device by its name under `hardware/targets/`, or by a file of the user's own.

    Raises:
        UserError: there is none, with the nearest names; or its file is malformed.
    """
    if reference.endswith(".toml"):
        return Path(reference).stem, load_device(Path(reference).expanduser())
    known = device_files()
    if reference not in known:
        raise UserError(f"unknown target {reference!r}; {suggestion(reference, known)}, or your own as FILE.toml")
    return reference, load_device(known[reference])


def open_target(name: str, profile: DeviceProfile) -> Target:
    """The target of a profile; nothing is connected yet."""
    match profile.target.kind:
        case "local":
            from dynbench.deploy.targets.local import Local

            return Local(name, profile.target)
        case "ssh":
            from dynbench.deploy.targets.ssh import Ssh

            return Ssh(name, profile.target)
        case "adb":
            from dynbench.deploy.targets.adb import Adb

            return Adb(name, profile.target)
        case "browser":
            from dynbench.deploy.targets.browser import Browser

            reach = profile.target
            return Browser(
                name,
                host=reach.host,
                port=reach.port,
                runtime_folder=reach.runtime_folder,
                opens=reach.open,
                device=profile.title if reach.open else "",
            )
