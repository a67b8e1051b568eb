"""The HTML and the Markdown of a report: what is in the data is in both, and nothing else can get in."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynbench.errors import UserError
from dynbench.report import write_report
from dynbench.report.content import Report, build
from dynbench.report.drawings import Absent
from dynbench.report.figures import as_png, as_svg, draw, spread
from dynbench.report.palette import TONES
from dynbench.report.svg import inline, standalone
from dynbench.report.write import escaped, to_markdown
from dynbench.store.run import Run
from dynbench.store.schema import Warning_
from tests.report import made_up

HOSTILE = """<script>alert("1")</script> & <b onclick='x'>|`*_[a](http://evil.example/) {{ 7*7 }} $x$ \\"""
VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}


class Page(HTMLParser):
    """All elements of a page, and whether they are nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag]


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def plain(page: Page) -> str:
    return " ".join("".join(page.text).replace("\N{NO-BREAK SPACE}", " ").split())


# --- the same content in both ----------------------------------------------------------------------------------------


def test_verdicts_reasons_and_numbers_are_on_both_pages(report: Report, page: Page, markdown: str) -> None:
    shown, flat = plain(page), " ".join(markdown.split())
    said = [v.sentence for v in report.verdicts] + [v.detail for v in report.verdicts]
    said += [
        "this model has none that halts",
        "its weights file is not there",
        "this made-up machine has no energy counter",
    ]
    said += ["1.21x (1.17 to 1.25)", "ms/item", "MFLOP/item", "2000 made-up scenes of 32 x 32"]
    said += ["only batch size 1 was timed", "more time", "recalled", "compaction breaks even with ResNet-38"]
    said += ["dynbench run 'a b.toml' --device cpu", "Not the share of computation kept"]
    for words in said:
        assert words in shown, words
        assert escaped(words) in flat or words in flat, words


def test_every_table_has_the_same_rows_on_both_pages(report: Report, page: Page, markdown: str) -> None:
    tables = [b.table for s in report.sections for b in s.blocks if b.table is not None]
    assert len(page.all("table")) == len(tables)
    assert len(page.all("tr")) == sum(1 + len(t.rows) for t in tables)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == sum(2 + len(t.rows) for t in tables)
    for t in tables:
        for row in t.rows:
            assert all(escaped(v.text) in markdown for v in row)


def test_units_stand_in_the_header(markdown: str) -> None:
    head = next(line for line in markdown.splitlines() if line.startswith("| what ran"))
    for column in ("batch (items)", "speed-up, x (95 % CI)", "time (ms/item)", "p90 (ms/batch)"):
        assert column in head


def test_markdown_links_figures_that_are_there_and_all_that_are_there(run_dir: Path, markdown: str) -> None:
    linked = re.findall(r"\]\((figures/[^)]+\.svg)\)", markdown)
    assert linked
    assert sorted(linked) == sorted(f"figures/{p.name}" for p in (run_dir / "figures").glob("*.svg"))
    for name in linked:
        assert (run_dir / name).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


# --- the page by itself ----------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_from_outside(html: str, page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value is not None and value.startswith("#"), (tag, name, value)
    assert not re.search(r"url\((?!['\"]?#)|@import|fetch\(|XMLHttpRequest|WebSocket", html)
    hosts = set(re.findall(r"https?://([\w.-]+)", html))
    assert hosts <= {"www.w3.org"}  # the name of SVG, which nobody loads
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none'")


def test_links_within_the_page_lead_somewhere_and_names_are_unique(page: Page) -> None:
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    targets = {str(a["href"])[1:] for a in page.all("a") + page.all("use")}
    assert targets <= set(names)
    assert {a["aria-labelledby"] for a in page.all("div") if "aria-labelledby" in a} <= set(names)


def test_tables_can_be_read_aloud_and_scroll_by_themselves(page: Page) -> None:
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    boxes = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table"))
    assert all(a["tabindex"] == "0" and a["role"] == "region" for a in boxes)


def test_every_figure_has_a_description_with_its_numbers(page: Page, report: Report) -> None:
    drawn = [p for g in report.figures for p in g.panels if p.absent is None]
    described = [a.get("aria-label") for a in page.all("svg")]
    assert described == [p.alt for p in drawn]
    assert len(page.all("figcaption")) == len(drawn)
    assert "compaction: 1.28x at 1, 1.09x at 8, 1.21x at 32" in str(described[0])


def test_the_page_is_made_for_light_dark_and_narrow_screens(html: str, page: Page) -> None:
    assert "@media (prefers-color-scheme: dark)" in html
    names = {a.get("name"): a.get("content") for a in page.all("meta")}
    assert names["viewport"] == "width=device-width, initial-scale=1"
    assert names["color-scheme"] == "light dark"


# --- what users write cannot get out of its place --------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every text a user can write is hostile."""
    doubt = Warning_(id=HOSTILE, text=HOSTILE, remedy=HOSTILE)
    cells = [made_up.cell("compaction", b, 1.2, path_label=HOSTILE, warnings=[doubt]) for b in (1, 8)]
    cells += [made_up.cell(HOSTILE, b, 1.3, arm="baseline") for b in (1, 8)]
    cells += [made_up.refused(f"{HOSTILE}{b}", b, HOSTILE) for b in (1, 8)]
    info = made_up.info(
        title=HOSTILE, paper=HOSTILE, model=HOSTILE, model_args={HOSTILE: HOSTILE}, provenance=HOSTILE, inputs=HOSTILE,
        weights=HOSTILE, card={HOSTILE: {HOSTILE: HOSTILE}}, trace_hashes={HOSTILE: HOSTILE},
        claims=[
            {"metric": HOSTILE, "value": 1, "unit": HOSTILE, "where": HOSTILE, "how": "timed", "hardware": HOSTILE}
        ],
    )  # fmt: skip
    told = made_up.manifest(
        info, run_id=HOSTILE, command=["dynbench", HOSTILE, "```"], spec={HOSTILE: HOSTILE}, started=HOSTILE,
        hardware={"name": HOSTILE}, software={HOSTILE: HOSTILE}, git={"commit": HOSTILE},
    )  # fmt: skip
    path = made_up.write_run(tmp_path_factory.mktemp("hostile") / "run", told, cells)
    write_report(path)
    return path


def test_text_stays_text_in_html(hostile: Path) -> None:
    html = (hostile / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert HOSTILE.strip() in "".join(page.text)
    assert "49" not in "".join(page.text).replace("7*7", "")  # nothing was taken for a template


def test_text_stays_text_in_markdown(hostile: Path) -> None:
    text = (hostile / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"(?ms)^(`{3,})\n.*?^\1$", "", text)  # code is shown as it is
    assert "<script" not in outside and "<b " not in outside
    assert not re.search(r"(?<!\\)\]\(http", outside)  # no link but those to figures
    tables = re.findall(r"(?m)(?:^\|.*\n)+", outside)
    assert tables
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert "````" in text  # a fence that the command cannot close


def test_text_stays_text_in_figures(hostile: Path) -> None:
    for file in (hostile / "figures").glob("*.svg"):
        root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
        assert not [e for e in root.iter() if e.tag.endswith("script")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a|b", r"a\|b"), ("two\nlines", "two lines"), ("per_sample", "per_sample"), ("_x_", r"\_x\_"),
     ("<a>", "&lt;a&gt;"), ("5 * 3", r"5 \* 3"), ("`x`", r"\`x\`")],
)  # fmt: skip
def test_markdown_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(run_dir: Path) -> list[tuple[Any, str]]:
    report = build(Run.open(run_dir))
    panels = [p for g in report.figures for p in g.panels if not isinstance(p.drawing, Absent)]
    one_of_each = {type(p.drawing): p for p in panels}.values()
    return [(p, as_svg(draw(p.drawing))) for p in one_of_each]


def test_the_same_drawing_gives_the_same_bytes(drawn: list[tuple[Any, str]]) -> None:
    for panel, code in drawn:
        figure = draw(panel.drawing)
        assert as_png(figure) == as_png(draw(panel.drawing))
        assert as_svg(figure) == code  # whichever format comes first


def test_text_in_figures_is_text_and_colours_follow_the_page(drawn: list[tuple[Any, str]]) -> None:
    for panel, code in drawn:
        svg = inline(code, panel.key, panel.alt)
        root = ElementTree.fromstring(svg)
        assert [e for e in root.iter() if e.tag.endswith("text")]
        assert "DejaVu" not in svg
        bare = re.sub(r"var\(--[\w-]+, #[0-9a-f]{6}\)", "", svg)
        assert not re.search(r"#[0-9a-f]{6}\b", bare), re.findall(r"#[0-9a-f]{6}\b", bare)
        assert {e.get("id") for e in root.iter() if e.get("id")} == set(re.findall(r"#([\w.-]+?-[\w.-]+)[\")]", svg))


def test_a_figure_file_brings_its_own_paper_light_and_dark(drawn: list[tuple[Any, str]]) -> None:
    panel, code = drawn[0]
    svg = standalone(code, panel.key, panel.alt)
    assert svg.startswith("<?xml")
    ElementTree.fromstring(svg)
    assert TONES["paper"].light in svg and TONES["paper"].dark in svg
    assert f"<title>{panel.title}" in svg


def test_labels_keep_their_order_and_distance_and_move_little() -> None:
    wanted = np.array([0.1, 0.11, 0.12, 0.8])
    found = spread(wanted, 0.05)
    assert (np.diff(found) >= 0.05 - 1e-12).all()
    assert found[3] == 0.8
    assert found[:3].mean() == pytest.approx(wanted[:3].mean())
    assert spread(np.array([]), 0.05).size == 0


# --- writing ---------------------------------------------------------------------------------------------------------


def test_only_the_formats_asked_for_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    run = made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), [])
    assert write_report(run, formats=["md"], out=tmp_path / "deep" / "out") == [tmp_path / "deep" / "out" / "report.md"]
    assert sorted(p.name for p in (tmp_path / "deep" / "out").iterdir()) == ["report.md"]
    assert write_report(run, formats=("html",)) == [run / "report.html"]


def test_the_same_run_gives_the_same_report(run_dir: Path, html: str, markdown: str, tmp_path: Path) -> None:
    write_report(run_dir, formats=["html"], out=tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert to_markdown(build(Run.open(run_dir))) == markdown


def test_an_unknown_format_and_a_missing_run_are_user_errors(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown report format 'htm'; did you mean 'html'"):
        write_report(run_dir, formats=["htm"])
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)


def test_a_report_needs_no_torch(run_dir: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, pathlib\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from dynbench.report import write_report\n"
        "write_report(pathlib.Path(sys.argv[1]), ['html'], pathlib.Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", code, run_dir, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
