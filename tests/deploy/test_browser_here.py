"""A browser on this machine that opens the page by itself: what it is given, and that nothing is left of it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from dynbench.deploy.targets.browser import Browser
from dynbench.deploy.targets.browser_here import opened
from dynbench.deploy.targets.find import find_device, open_target
from dynbench.deploy.targets.profile import Reach
from dynbench.errors import UserError


def left() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("dynbench-browser-*"))


def test_it_gets_the_link_with_its_name_and_is_ended_with_the_block(tmp_path: Path) -> None:
    program = tmp_path / "browser"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/said.part\nmv {tmp_path}/said.part {tmp_path}/said\nsleep 60\n'
    )
    program.chmod(0o755)
    before = left()
    with opened(str(program), "http://localhost:1/token/", "A browser & more") as process:
        for _ in range(200):
            if (tmp_path / "said").exists():
                break
            time.sleep(0.05)
        assert process.poll() is None and len(left()) == len(before) + 1
    said = (tmp_path / "said").read_text().splitlines()
    assert said[-1] == "http://localhost:1/token/?autostart=1&name=A%20browser%20%26%20more"
    assert any(option.startswith("--user-data-dir=") for option in said) and "--headless=new" in said
    assert process.returncode is not None and left() == before


def test_a_browser_that_is_not_there_is_one_sentence() -> None:
    with (
        pytest.raises(UserError, match="no-such-browser is not installed"),
        opened("no-such-browser", "http://x/", "a"),
    ):
        raise AssertionError("it was opened")


def test_the_sample_opens_its_own_browser_and_other_kinds_open_none() -> None:
    name, profile = find_device("browser-here")
    target = open_target(name, profile)
    assert isinstance(target, Browser) and (target.opens, target.device) == ("chromium", profile.title)
    other = open_target(*find_device("browser"))
    assert isinstance(other, Browser) and not other.opens
    for wrong, why in (
        ({"kind": "local", "open": "chromium"}, "open is of kind"),
        ({"kind": "browser", "open": "-x"}, "'-'"),
    ):
        with pytest.raises(ValidationError, match=why):
            Reach.model_validate(wrong)
