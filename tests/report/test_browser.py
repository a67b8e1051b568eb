"""The page in a real browser, as far as only a browser can tell: sorting, and that nothing sticks out on a phone."""

from __future__ import annotations

import html as html_
import json
import re
import shutil
import subprocess
from typing import Any

import pytest

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")
PHONE_PX = 390
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCRIPT = """
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, found = {};
  found.width = page.defaultView.innerWidth;
  found.needed = page.documentElement.scrollWidth;
  found.paper = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
  found.columns = frame.contentWindow.getComputedStyle(page.querySelector(".verdict")).gridTemplateColumns.split(" ");
  const heading = (h) => h.textContent.startsWith("speed-up");
  const long = [...page.querySelectorAll("table")].filter((t) => t.rows.length > 10);
  const box = long.find((t) => [...t.tHead.rows[0].cells].some(heading)).closest(".scroll");
  found.scrolls = [box.scrollWidth, box.clientWidth];
  const table = box.querySelector("table"), heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex(heading);
  const values = () => [...table.tBodies[0].rows].map((r) => r.cells[column].textContent);
  const click = () => heads[column].querySelector("button").click();
  found.before = values();
  click();
  found.up = [values(), heads[column].getAttribute("aria-sort")];
  click();
  found.down = [values(), heads[column].getAttribute("aria-sort")];
  heads[0].querySelector("button").click();
  found.other = [heads[column].getAttribute("aria-sort"), heads[0].getAttribute("aria-sort")];
  document.querySelector("pre").textContent = JSON.stringify(found);
});
frame.srcdoc = FRAME;
"""


@pytest.fixture(scope="module")
def found(html: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser says of the report in a frame as wide as a phone."""
    folder = tmp_path_factory.mktemp("browser")
    script = SCRIPT.replace("FRAME", json.dumps(html).replace("</", "<\\/"))
    outer = f'<iframe style="border:0;width:{PHONE_PX}px;height:800px"></iframe><pre></pre><script>{script}</script>'
    (folder / "outer.html").write_text(f"<!doctype html><meta charset=utf-8><body>{outer}</body>", encoding="utf-8")
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            *QUIET,
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            (folder / "outer.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert said is not None and said[1], done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html_.unescape(said[1]))
    return result


def numbers(values: list[str]) -> list[float]:
    return [float(v.split("x")[0].removesuffix(" (reference)")) for v in values if not v.startswith("n/a")]


def test_on_a_phone_nothing_sticks_out_and_wide_tables_scroll_in_their_box(found: dict[str, Any]) -> None:
    assert found["width"] == PHONE_PX
    assert found["needed"] <= PHONE_PX
    assert found["scrolls"][0] > found["scrolls"][1]
    assert len(found["columns"]) == 1


def test_a_click_sorts_by_number_both_ways_and_leaves_what_is_missing_last(found: dict[str, Any]) -> None:
    before, (up, said_up), (down, said_down) = found["before"], found["up"], found["down"]
    assert sorted(up) == sorted(down) == sorted(before)
    assert numbers(before) != sorted(numbers(before))
    assert numbers(up) == sorted(numbers(before))
    assert numbers(down) == sorted(numbers(before), reverse=True)
    missing = sum(v.startswith("n/a") for v in before)
    assert missing and all(v.startswith("n/a") for v in (*up[-missing:], *down[-missing:]))
    assert (said_up, said_down) == ("ascending", "descending")


def test_only_the_column_sorted_by_says_so(found: dict[str, Any]) -> None:
    assert found["other"] == [None, "ascending"]
