"""The pages under docs/ work when they are followed literally, and links between the project's pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dynbench.store.run import Run
from tests.project.pages import ROOT, blocks, commands, file_name, try_out

PAGES = sorted((ROOT / "docs").glob("add-*.md"))
MODEL = ROOT / "docs" / "add-a-model.md"  # the other pages measure its model
OWN = {  # page -> what its run is to have measured
    "add-a-strategy": lambda cell: cell.arm.strategy == "hybrid",
    "add-an-engine": lambda cell: cell.arm.engine == "fused" and cell.arm.strategy == "compaction",
    "add-a-load": lambda cell: cell.arm.load == "paced 2 ms",
    "add-a-target": lambda cell: cell.arm.strategy == "compaction",
    "add-a-quantity": lambda cell: cell.own.get("answer_bytes_per_item") == 40,
    "add-a-model": lambda cell: cell.arm.kind == "strategy" and cell.flops is not None and cell.flops.accounted > 0,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_followed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(MODEL):
        if page != MODEL and file_name(block):
            try_out(block, tmp_path)
    for block in blocks(page):
        try_out(block, tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    cells = [c for c in Run.open(folder).cells if OWN[page.stem](c)]
    assert cells and {c.status for c in cells} == {"ok"}


def test_every_page_has_a_file_and_a_command_and_nothing_that_is_not_tried() -> None:
    assert {page.stem for page in PAGES} == OWN.keys()
    for page in PAGES:
        found = blocks(page)
        assert any(map(file_name, found)) and any(map(commands, found))
        assert all(file_name(b) or commands(b) for b in found), page


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in PAGES)])
def test_links_lead_to_files_that_exist(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_design_names_every_room_and_links_every_page() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rooms = {p.name for p in (ROOT / "dynbench").iterdir() if (p / "__init__.py").is_file()}
    assert not [room for room in rooms if f"`{room}/`" not in text]
    assert not [page.name for page in PAGES if f"({page.name})" not in text]
