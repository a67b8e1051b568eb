"""One hostile workload through every output: what it says is text everywhere, and what is written stays well formed."""

from __future__ import annotations

import csv
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dynbench.gate import check as gate_check
from dynbench.store.gate import ExactChange
from dynbench.store.schema import Warning_
from tests.cli import TINY, call
from tests.faults.fuzz import in_this_process
from tests.faults.test_runs import QUICK, workload
from tests.report.made_up_gate import cell, gate

MARKUP = "x[/b][bold]<script>alert(1)</script>\"'><img src=e onerror=alert(1)>|`&amp;]]>{{7*7}}$\\frac{$"
UNSEEN = "\x1b[31m\x07\x01\u202e\u200f\r\n# Heading"
HOSTILE = f"{MARKUP}{UNSEEN}\U0001f600 ![i](http://e/x.png)"
NEVER = "\x1b\x07\x01\u202e\u200f\r"
ELEMENTS = ("script", "img")
OUTCOMES = ("SAME", "SLOWER", "FASTER", "AMBIGUOUS")
FORMS = ("markdown", "junit", "json", "bencher", "github-action-benchmark")


class Elements(HTMLParser):
    """The elements of a page, with handlers of events that stand in attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a hostile workload, its twin that is not, and runs of both."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, text in (("hostile", HOSTILE), ("tame", "tame")):
        own = folder / name
        own.mkdir()
        file = workload(own)
        content = "".join(
            f"{key} = {quoted(text)}\n" if (key := line.split(" = ")[0]) in ("name", "title") else line
            for line in file.read_text().splitlines(keepends=True)
        )
        content = content.replace("inputs = ", f"model_args = {{ point = {quoted(text)} }}\ninputs = ", 1)
        content += f'[[baselines]]\nname = {quoted(text)}\nprimary = true\nmodel = "net.py:plain"\n'
        content += f"[[claims]]\nmetric = {quoted(text)}\nvalue = 1.5\nunit = {quoted(text)}\nwhere = {quoted(text)}\n"
        file.write_text(content + 'how = "timed"\n', encoding="utf-8")
        with in_this_process(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            result = call("run", file, *QUICK, "--strategy", "masking", "--out", own / "run")
        assert result.exit_code == 0, result.output
        assert not [w for w in warned if "glyph" in str(w.message).lower()]
        (own / "said").write_text(result.output, encoding="utf-8", newline="")
    return folder


def quoted(text: str) -> str:
    """A string of TOML."""
    return json.dumps(text).replace("\\ud83d\\ude00", "\U0001f600").replace("\x7f", "\\u007f")


def harmless(text: str) -> None:
    """No character of the text does anything to a terminal, or to the direction of what follows."""
    assert not set(text) & set(NEVER)


def in_lines(text: str) -> None:
    """The same, and no line break begins a line of its own."""
    harmless(text)
    assert not re.search(r"(?m)^\s*# Heading", text)


def test_a_run_prints_text(scene: Path) -> None:
    with (scene / "hostile" / "said").open(encoding="utf-8", newline="") as file:
        said = file.read()
    in_lines(said)
    assert "[/b]" in said and "Glyph" not in said


@pytest.mark.parametrize(
    "args",
    [
        ("run", "hostile/net.toml", "--dry-run"),
        ("list", "workloads"),
        ("verify", "hostile/net.toml"),
        ("cost", "hostile/net.toml"),
        ("trace", "hostile/net.toml", "--batch", "8", "--batches", "1", "--out", "trace"),
        ("partition", "hostile/net.toml", "--rounds", "1"),
        ("whatif", "hostile/run"),
        ("advise", "hostile/run"),
        ("compare", "hostile/run", "tame/run"),
        ("compare", "hostile/run", "hostile/run"),
        ("compile", "hostile/net.toml", "--out", "bundle"),
        ("history", "add", "hostile/run", "--db", "h.db"),
        ("history", "list", "--db", "h.db"),
        ("history", "show", HOSTILE, "--db", "h.db"),
        ("history", "checks", "--db", "h.db"),
        ("history", "report", "--db", "h.db", "--out", "pages"),
        ("report", "hostile/run"),
    ],
    ids=lambda args: " ".join(args).replace(HOSTILE, "NAME"),
)
def test_a_command_prints_text(args: tuple[str, ...], scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scene)
    with in_this_process():
        result = call(*args)
    assert result.exit_code in (0, 1, 2), result.output
    assert "Traceback" not in result.output and "Glyph" not in result.output
    in_lines(result.output)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `check` says and writes where everything in its verdict is hostile."""
    folder = tmp_path_factory.mktemp("checked")
    exact = ExactChange(what=HOSTILE, base=HOSTILE, head=HOSTILE, regression=True, text=HOSTILE)
    cells = [cell(outcome, 1.1, exact).model_copy(update={"name": HOSTILE, "reason": HOSTILE}) for outcome in OUTCOMES]
    words = ("workload", "title", "base", "head", "machine", "device")
    found = gate(*cells, **dict.fromkeys(words, HOSTILE), notes=[HOSTILE])
    found = found.model_copy(update={"warnings": [Warning_(id="DB-X-01", text=HOSTILE, remedy=HOSTILE)]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_check, "check", lambda *_, say, **__: say(HOSTILE) or found)
        patch.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
        files = [part for name in FORMS for part in (f"--{name}", folder / name)]
        result = call("check", TINY, "--base", "main", "--history", folder / "h.db", *files)
        again = call("history", "checks", "--db", folder / "h.db")
    assert result.exit_code == 1 and again.exit_code == 0, result.output + again.output
    (folder / "said").write_bytes((result.output + again.output).encode())
    return folder


def test_a_check_says_text(checked: Path) -> None:
    in_lines((checked / "said").read_bytes().decode())


@pytest.mark.parametrize("name", ["summary.md", "markdown"])
def test_the_summary_of_a_check_keeps_its_form(name: str, checked: Path) -> None:
    text = (checked / name).read_bytes().decode()
    in_lines(text)
    outside = re.sub(r"(`+).*?\1", "", text)
    assert not re.search(r"(?<!\\)<(script|img)", outside) and not re.search(r"(?<!\\)!\[i\]\(", outside)
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_junit_and_other_forms_of_a_check_are_well_formed(checked: Path) -> None:
    content = (checked / "junit").read_bytes()
    suite = ElementTree.fromstring(content)
    harmless(content.decode())
    assert {e.tag for e in suite.iter()} <= {"testsuite", "testcase", "failure", "skipped", "system-out"}
    assert len(suite.findall("testcase")) == 2 * len(OUTCOMES)
    assert MARKUP in suite.findall("testcase")[0].attrib["name"]
    for name in ("json", "bencher", "github-action-benchmark"):
        text = (checked / name).read_bytes().decode()
        assert not set(text) & set("\x1b\x07\x01\r")  # the direction of text stays in what programs read
        assert json.loads(text)


def test_a_report_is_well_formed_and_runs_nothing(scene: Path) -> None:
    pages = {}
    for name in ("hostile", "tame"):
        (page,) = (scene / name / "run").glob("report.html")
        pages[name] = Elements(page.read_text(encoding="utf-8"))
        harmless(page.read_text(encoding="utf-8"))
    for element in ELEMENTS:
        assert pages["hostile"].found.count(element) == pages["tame"].found.count(element)
    assert pages["hostile"].handlers == pages["tame"].handlers
    text = (scene / "hostile" / "run" / "report.md").read_text(encoding="utf-8")
    in_lines(text)
    outside = re.sub(r"```.*?```|(`+).*?\1", "", text, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<(script|img)", outside) and not re.search(r"(?<!\\)!\[i\]\(", outside)


def test_drawings_are_xml_without_scripts(scene: Path) -> None:
    drawings = list((scene / "hostile" / "run").rglob("*.svg"))
    assert drawings
    for file in drawings:
        root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"script", "img", "foreignObject"}
        harmless(file.read_text(encoding="utf-8"))


def test_tables_keep_their_columns(scene: Path, tmp_path: Path) -> None:
    assert call("export", scene / "hostile" / "run", "--out", tmp_path).exit_code == 0
    files = list(tmp_path.rglob("*.csv"))
    assert files
    for file in files:
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.reader(opened))
        assert len({len(row) for row in rows}) <= 1, file
    for file in tmp_path.rglob("*.json"):
        json.loads(file.read_text(encoding="utf-8"))


def test_the_page_of_a_history_runs_nothing(scene: Path, tmp_path: Path) -> None:
    for name in ("hostile", "tame"):
        db = tmp_path / f"{name}.db"
        assert call("history", "add", scene / name / "run", "--db", db).exit_code == 0
        result = call("history", "report", "--db", db, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    found = {}
    for name in ("hostile", "tame"):
        pages = [p.read_text(encoding="utf-8") for p in sorted((tmp_path / name).rglob("*.html"))]
        assert pages
        found[name] = [sum(Elements(page).found.count(e) for page in pages) for e in ELEMENTS]
        for page in pages:
            harmless(page)
    assert found["hostile"] == found["tame"]


def test_a_bundle_says_what_it_is_in_text(scene: Path, tmp_path: Path) -> None:
    assert call("compile", scene / "hostile" / "net.toml", "--out", tmp_path / "bundle").exit_code == 0
    harmless((tmp_path / "bundle" / "README.txt").read_text(encoding="utf-8"))
    json.loads((tmp_path / "bundle" / "manifest.json").read_text(encoding="utf-8"))
