"""The HTML and the Markdown of a report: what is in the data is in both, and nothing else can get in."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.errors import UserError
from dynbench.report import write_report
from dynbench.report.columns import Column
from dynbench.report.content import Panel, Report, build
from dynbench.report.drawings import Absent, Bar, Curve, Distribution, Line, Paths, Speedups, Trend, Work
from dynbench.report.figures import Drawing, draw
from dynbench.report.layout import even_ticks, ratio_ticks, spread, text_width, theme, time_ticks
from dynbench.report.markup import escaped, html_table
from dynbench.report.palette import INK, MUTED, STRATEGIES, TONES
from dynbench.report.svg import Picture, picture
from dynbench.report.tables import Row, make_table
from dynbench.report.values import Value, number, words
from dynbench.report.write import to_markdown, write_pages
from dynbench.store.run import Run
from dynbench.store.schema import Interval, Warning_
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
        if tag == "td":
            self._end_cell()
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self._end_cell()
        assert self._open.pop() == tag

    def _end_cell(self) -> None:
        """A cell ends where the next one begins, or the row ends."""
        if self._open[-1] == "td":
            self._open.pop()

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
    for phrase in said:
        assert phrase in shown, phrase
        assert escaped(phrase) in flat or phrase in flat, phrase


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
    assert {file.suffix for file in (run_dir / "figures").iterdir()} == {".svg"}  # and nothing that is not linked


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
    cells += [made_up.cell(HOSTILE, b, 1.3, kind="baseline") for b in (1, 8)]
    cells += [made_up.refused(f"{HOSTILE}{b}", b, HOSTILE) for b in (1, 8)]
    info = made_up.info(
        title=HOSTILE,
        paper=HOSTILE,
        model=HOSTILE,
        model_args={HOSTILE: HOSTILE},
        provenance=HOSTILE,
        inputs=HOSTILE,
        weights=HOSTILE,
        card={HOSTILE: {HOSTILE: HOSTILE}},
        trace_hashes={HOSTILE: HOSTILE},
        claims=[
            {"metric": HOSTILE, "value": 1, "unit": HOSTILE, "where": HOSTILE, "how": "timed", "hardware": HOSTILE}
        ],
    )
    told = made_up.manifest(
        info,
        run_id=HOSTILE,
        command=["dynbench", HOSTILE, "```"],
        spec={HOSTILE: HOSTILE},
        started=HOSTILE,
        hardware={"name": HOSTILE},
        software={HOSTILE: HOSTILE},
        git={"commit": HOSTILE},
    )
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
    [
        ("a|b", r"a\|b"),
        ("two\nlines", "two lines"),
        ("per_sample", "per_sample"),
        ("_x_", r"\_x\_"),
        ("<a>", "&lt;a&gt;"),
        ("5 * 3", r"5 \* 3"),
        ("`x`", r"\`x\`"),
    ],
)
def test_markdown_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(run_dir: Path) -> list[Panel]:
    report = build(Run.open(run_dir))
    panels = [p for g in report.figures for p in g.panels if not isinstance(p.drawing, Absent)]
    return list({type(p.drawing): p for p in panels}.values())


def drawn_as_svg(drawing: Drawing) -> Picture:
    with theme():
        return picture(draw(drawing), "m0-")


def test_the_same_drawing_gives_the_same_bytes(drawn: list[Panel]) -> None:
    assert len(drawn) == 4
    for panel in drawn:
        assert drawn_as_svg(panel.drawing) == drawn_as_svg(panel.drawing)


def test_text_in_figures_is_text_and_colours_follow_the_page(html: str) -> None:
    found = re.findall(r"<svg .*?</svg>", html, re.DOTALL)
    assert found
    for svg in found:
        root = ElementTree.fromstring(svg)
        assert [e for e in root.iter() if e.tag == "text"]
        assert not re.search(r"#[0-9a-f]{6}\b|font-family|font:|style=|clip-path", svg)
        names = {e.attrib["class"].split()[0].removeprefix("t-") for e in root if e.tag == "g"}
        assert names and names <= set(TONES)
        assert all(f".t-{name}{{color:var(--{name})}}" in html for name in names)


def test_drawing_leaves_the_style_of_other_figures_alone() -> None:
    before = dict(mpl.rcParams)
    with theme():
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before


def test_a_figure_file_brings_its_own_paper_light_and_dark(drawn: list[Panel]) -> None:
    for panel in drawn:
        svg = drawn_as_svg(panel.drawing).standalone(panel.title)
        root = ElementTree.fromstring(svg)
        assert f"<title>{panel.title}</title>" in svg
        used = {e.attrib["class"].split()[0].removeprefix("t-") for e in root if e.tag.endswith("}g")}
        assert len(used) > 2
        light, dark = svg.split("@media (prefers-color-scheme:dark)")
        assert f"--paper:{TONES['paper'].light}" in light and f"--paper:{TONES['paper'].dark}" in dark
        for name in used:
            assert f".t-{name}{{color:{TONES[name].light}}}" in light
            assert f".t-{name}{{color:{TONES[name].dark}}}" in dark


Box = tuple[float, float, float, float]  # left, top, right, bottom


def boxes(found: Picture) -> tuple[list[Box], list[Box]]:
    """Where the upright texts of a figure are, and the others."""
    upright, turned = [], []
    for e in ElementTree.fromstring(found.inline("")).iter("text"):
        size, width = float(e.get("font-size", "10")), text_width(str(e.text), float(e.get("font-size", "10")))
        before = {"e": width, "m": width / 2}.get(e.get("class", ""), 0.0)
        turn = re.search(r"rotate\(-(\d+)", e.get("transform", ""))
        moved = re.search(r"translate\((\S+) (\S+)\)", e.get("transform", ""))
        x, y = map(float, moved.groups() if moved else (e.attrib["x"], e.attrib["y"]))
        if turn is None:
            upright.append((x - before, y - 0.8 * size, x - before + width, y + 0.2 * size))
        else:
            cosine, sine = math.cos(math.radians(float(turn[1]))), math.sin(math.radians(float(turn[1])))
            after = width - before
            turned.append((x - before * cosine, y - after * sine, x + after * cosine, y + before * sine))
    return upright, turned


def assert_legible(found: Picture) -> None:
    """Nothing is outside of the figure, and no text covers another one."""
    with theme():
        texts, turned = boxes(found)
    width, height = map(float, found.view.split()[2:])
    assert texts
    for left, top, right, bottom in texts + turned:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height, (left, top, right, bottom)
    for (a_left, a_top, a_right, a_bottom), (b_left, b_top, b_right, b_bottom) in itertools.combinations(texts, 2):
        apart = a_right <= b_left or b_right <= a_left or a_bottom <= b_top or b_bottom <= a_top
        assert apart, (texts,)
    for e in ElementTree.fromstring(found.inline("")).iterfind("g//"):
        starts = [(e.get("x"), e.get("y"))] if e.tag == "use" else re.findall(r"M(-?[\d.]+) (-?[\d.]+)", e.get("d", ""))
        assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in starts), starts


def test_figures_are_legible(drawn: list[Panel]) -> None:
    for panel in drawn:
        assert_legible(drawn_as_svg(panel.drawing))


@pytest.mark.parametrize("learned", [0.1, 0.5, 0.98])
def test_the_learned_keep_rate_is_named_inside_the_figure(learned: float) -> None:
    line = Line("a", "masking", [0.1, 0.9], [2.0, 1.0], [1.9, 0.9], [2.1, 1.1])
    assert_legible(drawn_as_svg(Speedups("keep-rate", "b", [line], [(0.1, 4.0), (0.9, 1.1)], {"a": 0.9}, learned)))


@pytest.mark.parametrize("labels", [["1", "2"], [f"{i}–{i + 50}" for i in range(12345, 12355)]])
def test_paths_are_named_apart_however_many_and_long(labels: list[str]) -> None:
    arms = [Distribution("compaction", "compaction", [[1.0, 1.1, 1.2, 1.3, 1.4]] * len(labels))]
    counted = "m" * 40
    assert_legible(
        drawn_as_svg(Paths(counted, labels, [1234] * len(labels), 3, arms, [("b", [1, 1.1, 1.2, 1.3, 1.4])]))
    )


@pytest.mark.parametrize("changes", [[], [0, 1], [22, 23], list(range(24))])
def test_changes_are_named_apart_however_near_and_many(changes: list[int]) -> None:
    runs, flat = list(range(24)), Interval(value=1.5, low=1.4, high=1.6)
    curves = [
        Curve(f"{tone} of a long kind", tone, runs, [flat] * 24, [2.0] * 24, [False] * 24, changes, static=False)
        for tone in [*STRATEGIES, MUTED]
    ]
    assert_legible(drawn_as_svg(Trend("m" * 40, [f"{i:08}" for i in runs], curves)))


NAMES = st.one_of(st.text("mi基", min_size=1, max_size=40), st.sampled_from(["compaction", "per_sample, compile"]))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(NAMES, st.integers(1, 4), st.floats(0.02, 20)), min_size=1, max_size=9))
def test_names_of_lines_stand_apart_wherever_they_end(ends: list[tuple[str, int, float]]) -> None:
    sizes, tones = [1.0, 8.0, 32.0, 64.0], itertools.cycle([*STRATEGIES, MUTED])
    lines = [
        Line(name, tone, sizes[:count], [y] * count, [0.9 * y] * count, [1.1 * y] * count)
        for (name, count, y), tone in zip(ends, tones, strict=False)
    ]
    assert_legible(drawn_as_svg(Speedups("batch size", "m" * 40, lines, [(1.0, 2.0)], {})))


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=30, deadline=None)
def test_any_name_can_be_drawn(name: str) -> None:
    bars = [Bar(name, 2e6, "masking", executed=True), Bar("dense", 3e6, INK, executed=False)]
    found = drawn_as_svg(Work(8, bars, 3e6, [], None))
    ElementTree.fromstring(found.inline(name))
    ElementTree.fromstring(found.standalone(name))
    assert_legible(found)


def test_a_second_line_in_the_colour_of_a_strategy_has_hollow_markers(tmp_path: Path) -> None:
    cells = [
        made_up.cell("compaction", b, speed, engine=engine)
        for b in (1, 8)
        for engine, speed in (("eager", 1.2), ("compile", 1.5))
    ]
    run = Run.open(made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), cells))
    drawing = next(g for g in build(run).figures if g.key == "speedup-by-batch").panels[0].drawing
    assert isinstance(drawing, Speedups)
    assert [(line.name, line.tone, line.hollow) for line in drawing.lines] == [
        ("compaction", "compaction", False),
        ("compaction, compile", "compaction", True),
    ]
    svg = drawn_as_svg(drawing).inline("")
    assert ">compaction, compile 1.50x</text>" in svg and ">compaction 1.20x</text>" in svg
    (own,) = [g for g in ElementTree.fromstring(svg).iterfind("g[@class='t-compaction']") if g.find("g") is not None]
    assert [g.get("class") for g in own.iterfind("g")] == ["f", "h"]  # filled and hollow markers


@given(
    st.lists(st.floats(0, 200), min_size=1, max_size=12).map(sorted),
    st.sampled_from([(-math.inf, math.inf), (0.0, 240.0)]),
)
def test_labels_keep_their_order_and_distance_inside_the_figure(wanted: list[float], ends: tuple[float, float]) -> None:
    found = spread(wanted, 13, *ends)
    assert len(found) == len(wanted)
    assert all(b - a >= 13 - 1e-9 for a, b in zip(found, found[1:], strict=False))
    assert ends[0] - 1e-9 <= found[0] and found[-1] <= ends[1] + 1e-9


def test_labels_move_little() -> None:
    found = spread([10, 11, 12, 80], 5)
    assert found == pytest.approx([6, 11, 16, 80])
    assert spread([], 5) == []


@given(st.floats(0.02, 40), st.floats(1.05, 50))
def test_ticks_are_on_the_scale_and_can_be_told_apart(low: float, factor: float) -> None:
    high = low * factor
    for ticks in (ratio_ticks(low, high), time_ticks(low, high)):
        values = [value for value, _ in ticks]
        assert values == sorted(values)
        assert all(low <= v <= high for v in values)
        assert len({text for _, text in ticks}) == len(ticks)
    assert len(time_ticks(low, high)) >= 2
    if low <= 1 <= high:
        assert (1, "1x") in ratio_ticks(low, high)


@given(st.floats(0, 1e6), st.floats(1e-3, 1e6), st.integers(3, 8))
def test_even_ticks_are_round_and_not_many(low: float, width: float, most: int) -> None:
    ticks = even_ticks(low, low + width, most)
    assert 1 <= len(ticks) <= most
    assert all(low - 1e-6 * width <= t <= low + width * (1 + 1e-6) for t in ticks)


# --- tables ----------------------------------------------------------------------------------------------------------


def one_column(kind: Literal["number", "text"], *values: Value) -> str:
    """The HTML of a table with one column beside its names."""
    columns = [Column("name", "name", kind="name"), Column("value", "value", kind=kind)]
    rows: list[Row] = [{"name": words(f"row {i}"), "value": value} for i, value in enumerate(values)]
    return str(html_table(make_table("key", "title", columns, rows), "t1", {}))


@pytest.mark.parametrize(
    ("values", "needs"),
    [
        ([number(1234.5), number(0.001), number(2e12), Value("n/a", None)], False),  # what is shown is in order
        ([Value("31 %", 0.31), Value("5 %", 0.05)], False),
        ([Value("1.2 GB", 1.2e9), Value("300 MB", 3e8)], True),  # not by the number that is shown
        ([Value("< 0.0001", 1e-5), number(0.01)], True),
    ],
)
def test_what_a_column_is_sorted_by_is_written_where_its_text_does_not_tell(values: list[Value], needs: bool) -> None:
    assert ("data-sort" in one_column("number", *values)) == needs


def test_text_is_sorted_as_text() -> None:
    assert 'data-by="text">value' in one_column("text", words("b"), words("a"))
    assert 'data-by="text">value' not in one_column("number", number(1), number(2))


# --- writing ---------------------------------------------------------------------------------------------------------


def test_only_the_formats_asked_for_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    run = made_up.write_run(tmp_path / "run", made_up.manifest(made_up.info()), [])
    assert write_report(run, formats=["md"], out=tmp_path / "deep" / "out") == [tmp_path / "deep" / "out" / "report.md"]
    assert sorted(p.name for p in (tmp_path / "deep" / "out").iterdir()) == ["report.md"]
    assert write_report(run, formats=("html",)) == [run / "report.html"]


def test_the_same_run_gives_the_same_report(run_dir: Path, html: str, markdown: str, tmp_path: Path) -> None:
    write_pages(build(Run.open(run_dir)), "report", ["html"], tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert to_markdown(build(Run.open(run_dir))) == markdown


def test_an_unknown_format_and_a_missing_run_are_user_errors(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown report format 'htm'; did you mean html"):
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
