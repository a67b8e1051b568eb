"""Which device adb is to use, and what is to be done where it cannot."""

from __future__ import annotations

import pytest

from dynbench.deploy.targets.adb_client import chosen, devices_in
from dynbench.deploy.targets.ssh_client import Unreachable
from dynbench.errors import UserError

LISTING = "* daemon started successfully\nList of devices attached\nR5CT\tdevice\nemulator-5554\toffline\n\n"


def test_the_list_of_devices_is_read() -> None:
    assert devices_in(LISTING) == {"R5CT": "device", "emulator-5554": "offline"}


def test_the_only_device_needs_no_name() -> None:
    assert chosen({"R5CT": "device"}, "") == "R5CT"
    assert chosen(devices_in(LISTING), "R5CT") == "R5CT"


def test_several_devices_need_one() -> None:
    with pytest.raises(UserError, match=r"several devices \(R5CT, emulator-5554\): name one by `serial = ...`"):
        chosen(devices_in(LISTING), "")


@pytest.mark.parametrize(
    ("states", "serial", "sentence"),
    [
        ({}, "", "adb sees no device: enable USB debugging"),
        ({"A": "device"}, "B", r"does not see the device B \(it sees A\)"),
        ({"A": "unauthorized"}, "", "accept the key that it shows"),
        ({"A": "no permissions (user in plugdev group)"}, "A", "may not be opened by this user"),
        ({"A": "offline"}, "A", "adb reconnect"),
        ({"A": "strange"}, "A", "is in the state 'strange'"),
    ],
)
def test_a_device_that_cannot_be_used_has_a_remedy(states: dict[str, str], serial: str, sentence: str) -> None:
    with pytest.raises(Unreachable, match=sentence):
        chosen(states, serial)
