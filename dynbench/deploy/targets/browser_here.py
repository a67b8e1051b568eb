"""A browser on this machine, without a screen, that opens the page by itself: a report then takes one command."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from dynbench.errors import UserError

OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)  # of Chromium and its kin: nothing is asked, nothing is fetched beside the page


@contextlib.contextmanager
def opened(program: str, link: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Opens a link of the page in a browser that has a profile of its own; it is ended with the block.

    Args:
        program: Chromium, or a browser that takes its options.
        link: of the page.
        name: of the device, which the page would ask for.

    Yields:
        Its process.

    Raises:
        UserError: there is no such program, or it cannot be started.
    """
    if shutil.which(program) is None:
        raise UserError(
            f"{program} is not installed on this machine, which is to open the page: name another as `open`"
        )
    folder = Path(tempfile.mkdtemp(prefix="dynbench-browser-"))
    # Chromium refuses to keep its sandbox as root. The page is our own, and loads nothing from elsewhere.
    options = [*OPTIONS, *(["--no-sandbox"] if os.getuid() == 0 else []), f"--user-data-dir={folder}"]
    try:
        process = subprocess.Popen(
            [program, *options, f"{link}?autostart=1&name={quote(name)}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError as e:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{program} cannot be started: {e.strerror or e}") from e
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
