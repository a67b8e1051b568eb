"""The files of walks: what is written comes back, and damage is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.store.scaling import FORMAT
from dynbench.store.walks import FOLDER, Walked, read_walked, write_walked
from tests.analysis.scalings import CONSTANTS, networks


def walked(group: str, workload: str = "skipnet38") -> Walked:
    return Walked(workload=workload, group_id=group, networks=networks(), constants=CONSTANTS)


def test_what_is_written_comes_back_and_the_last_walk_of_a_group_counts(tmp_path: Path) -> None:
    assert read_walked(tmp_path, "skipnet38") == []
    for one in (walked("a/1"), walked("a/32"), walked("b/1", "another")):
        write_walked(tmp_path, one)
    again = walked("a/1").model_copy(update={"networks": networks()[:1]})
    write_walked(tmp_path, again)
    found = {one.group_id: one for one in read_walked(tmp_path, "skipnet38")}
    assert found == {"a/1": again, "a/32": walked("a/32")}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-20], "cannot read"),
        (lambda text: text.replace(f'"format": {FORMAT}', '"format": 99'), "newer dynbench"),
        (lambda text: text.replace('"sizes": [1, 2,', '"sizes": [2, 1,', 1), "sizes must ascend"),
        (lambda text: "[1]\n", "is corrupt"),
        (lambda text: "[" * 100_000, "cannot read"),
    ],
)
def test_a_damaged_file_is_a_sentence_with_its_name(tmp_path: Path, damage: object, said: str) -> None:
    path = write_walked(tmp_path, walked("a/1"))
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError, match=said) as error:
        read_walked(tmp_path, "skipnet38")
    assert f"{FOLDER}/{path.name}" in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / FOLDER).symlink_to(elsewhere)
    with pytest.raises(UserError, match="symbolic link"):
        write_walked(tmp_path, walked("a/1"))
    assert list(elsewhere.iterdir()) == []
