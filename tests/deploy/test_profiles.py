"""Devices: those that come along are valid, and what is wrong with a user's own is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.deploy.targets.browser import Browser
from dynbench.deploy.targets.find import find_device, open_target
from dynbench.deploy.targets.profile import device_files
from dynbench.errors import UserError


@pytest.mark.parametrize("name", device_files())
def test_devices_that_come_along_can_be_opened(name: str) -> None:
    found, profile = find_device(name)
    assert open_target(found, profile).name == name


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown target 'raspbery-pi'; did you mean raspberry-pi-5"):
        find_device("raspbery-pi")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('kind = "ssh"', "kind 'ssh' needs a host"),
        ('kind = "ssh"\nhost = "-oProxyCommand=x"', "must not begin with '-'"),
        ('kind = "adb"\nserial = "-H"', "serial and open must not begin with '-'"),
        ('kind = "local"\nagent = "browser"', "measures by the agent 'python' or 'native', not 'browser'"),
        ('kind = "adb"\npython = "python3"\nagent = "native"', "python is not of the agent 'native', but of 'python'"),
        ('kind = "ssh"\nhost = "board"\nprogram = "agent"', "program is not of the agent 'python', but of 'native'"),
        ('kind = "local"\nsensors = ["rpi5"]', "unknown sensor 'rpi5'; did you mean rpi5_pmic"),
        ('kind = "tape"', "target.kind"),
        ('kind = "local"\nspeed = 1', "target.speed"),
        ('kind = "local"\nport = 70000', "target.port"),
    ],
)
def test_what_is_wrong_with_a_device_is_named(tmp_path: Path, table: str, sentence: str) -> None:
    file = tmp_path / "board.toml"
    file.write_text(f'title = "A board"\n[target]\n{table}\n')
    with pytest.raises(UserError) as raised:
        find_device(str(file))
    assert str(raised.value).startswith(str(file)) and sentence in str(raised.value)


def test_an_identity_is_relative_to_its_file(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text('title = "A board"\n[target]\nkind = "ssh"\nhost = "board"\nidentity = "key"\n')
    assert find_device(str(file))[1].target.identity == tmp_path / "key"


def test_ceilings_need_a_source(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text('title = "A board"\n[ceilings]\nmemory_bytes_per_s = 1e10\n[target]\nkind = "local"\n')
    with pytest.raises(UserError, match="ceilings need a source"):
        find_device(str(file))


def test_a_folder_of_the_runtime_starts_from_the_file_and_reaches_the_page(tmp_path: Path) -> None:
    file = tmp_path / "phone.toml"
    file.write_text('title = "A phone"\n[target]\nkind = "browser"\nport = 8000\nruntime_folder = "web"\n')
    target = open_target(*find_device(str(file)))
    assert isinstance(target, Browser)
    assert (target.port, target.runtime_folder) == (8000, tmp_path / "web")
