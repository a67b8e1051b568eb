"""Lines of code: what is counted, and that the table follows our models."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.report.lines import PACKAGE, code_lines, compared
from dynbench.report.overview import build_overview
from dynbench.store.run import Run
from tests.report import made_up

SOURCE = '''
import torch  # not part of a class

@decorated
class Net:
    """Docstring,

    of three lines."""

    x = 1  # counts

    # does not
    def f(self, a,
          b):
        "a docstring too"
        text = """a string that is
        used"""
        "a string that stands alone, but not first"
        return text


def helper():
    return 2


def training():
    return 3
'''


def test_blank_lines_comments_and_docstrings_do_not_count() -> None:
    assert code_lines(SOURCE, ["Net"]) == 2 + 1 + 2 + 2 + 1 + 1
    assert code_lines(SOURCE, ["helper"]) == 2
    assert code_lines(SOURCE, ["Net", "helper"]) == 9 + 2


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="'Nett'"):
        code_lines(SOURCE, ["Nett"])


@pytest.mark.parametrize("c", compared(), ids=lambda c: c.repository)
def test_every_network_of_the_table_is_counted_here_and_cited(c) -> None:  # type: ignore[no-untyped-def]
    assert c.our_lines > 20 and c.their_lines > 20
    assert len(c.commit) == 40 and c.repository.count("/") == 1
    assert all(names for names in c.theirs.values()) and all((PACKAGE / file).is_file() for file in c.ours)


def test_the_answer_shows_the_networks_of_the_run_alone(tmp_path: Path) -> None:
    name = "skipnet38_digits"
    path = made_up.write_run(
        tmp_path / "run",
        made_up.manifest(made_up.info(name), made_up.info(made_up.CASCADED)),
        [c.model_copy(update={"workload": name}) for c in made_up.group(8)],
    )
    overview = build_overview(Run.open(path), {name: "a", made_up.CASCADED: "b"})
    (answer,) = (a for a in overview.answers if a.key == "answer-expression")
    (table,) = (b.table for b in answer.blocks if b.title == "Lines of code, ours and the authors'" and b.table)
    (row,) = table.rows
    ours = compared()[0]
    assert ours.repository == "ucbdrive/skipnet"
    assert [v.text for v in row][2:4] == [str(ours.our_lines), "155"]
    assert any(f"takes {ours.our_lines} lines of code here and 155" in s for s in answer.sentences)
