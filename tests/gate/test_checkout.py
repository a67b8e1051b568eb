"""The source of the base, completed by what git alone does not have."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dynbench.errors import UserError
from dynbench.gate.checkout import BaseTree, check_out, take_rest
from dynbench.gate.git import commit_of, git, head_of, top_level
from tests.gate.repositories import repository


def based(root: Path, tmp_path: Path, revision: str = "HEAD~1") -> BaseTree:
    """The source of a revision, complete."""
    base = check_out(root, commit_of(root, revision), tmp_path / "base" / root.name)
    take_rest(base, root)
    return base


def listing(folder: Path) -> dict[str, float]:
    """All files of a folder with their times."""
    return {str(p): p.lstat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def test_a_revision_is_written_beside_the_working_tree_of_which_nothing_changes(tmp_path: Path) -> None:
    root = repository(tmp_path / "repo", {"mine/a.py": "1", "old.py": ""}, {"mine/a.py": "2"})
    git(root, "rm", "-q", "old.py")
    git(root, "tag", "-a", "v1", "-m", "v1", "HEAD~1")
    before = listing(root)
    base = based(root, tmp_path)
    assert (base.path / "mine" / "a.py").read_text() == "1" and (base.path / "old.py").is_file()
    assert listing(root) == before and base.note is None and base.doubts == []
    assert git(base.path, "rev-parse", "HEAD") == git(root, "rev-parse", "HEAD~1")  # as code of its own may ask
    assert git(base.path, "describe") == "v1" and head_of(base.path)[1] is False


@pytest.mark.parametrize("kind", ["shallow", "bare and a worktree", "blobless", "linked by alternates"])
def test_every_kind_of_clone_has_a_base(kind: str, tmp_path: Path) -> None:
    origin = repository(tmp_path / "origin", {"a": "1"}, {"a": "2"}, {"a": "3"})
    git(origin, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    if kind == "bare and a worktree":
        git(tmp_path, "clone", "-q", "--bare", str(origin), str(tmp_path / "bare.git"))
        git(tmp_path / "bare.git", "worktree", "add", "-q", str(clone), "main")
    else:
        how = {"shallow": ["--depth=2"], "blobless": ["--filter=blob:none"], "linked by alternates": ["--shared"]}[kind]
        git(tmp_path, "clone", "-q", *how, f"file://{origin}" if how != ["--shared"] else str(origin), str(clone))
    base = based(clone, tmp_path)
    assert (base.path / "a").read_text() == "2" and git(base.path, "log", "-1", "--format=%s") == "1"


def test_ignored_files_are_the_heads_but_for_environments_and_caches(tmp_path: Path) -> None:
    ignored = "weights/\n*.bin\n_version.py\n__pycache__/\nenv/\n.venv/\n/made/\n"
    root = repository(tmp_path / "repo", {".gitignore": ignored, "pkg/__init__.py": "", "both/x": ""}, {"a": "2"})
    for path in (
        "weights/deep/net.safetensors",
        "both/y.bin",
        "pkg/_version.py",
        "pkg/__pycache__/x.pyc",
        "env/pyvenv.cfg",
        ".venv/lib",
        "made/gen.py",
        "made/table.bin",
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    base = based(root, tmp_path)
    assert sorted(base.taken) == ["both/y.bin", "made/gen.py", "made/table.bin", "pkg/_version.py", "weights/"]
    assert base.note == (
        "the base uses the working tree's both/y.bin, made/gen.py, made/table.bin, pkg/_version.py, weights/, "
        "which git does not have"
    )
    assert (base.path / "weights").is_symlink() and (base.path / "both" / "y.bin").read_text() == "both/y.bin"
    for code in ("made/gen.py", "pkg/_version.py"):  # imported from the base's own tree
        assert (base.path / code).resolve().is_relative_to(base.path.resolve())


def test_of_files_that_are_not_ignored_code_is_a_change_of_the_head(tmp_path: Path) -> None:
    root = repository(tmp_path / "repo", {"a.py": ""}, {"a.py": "2"})
    for path in ("net.safetensors", "new.py", "new.toml", "data/x.npy"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(path)
    base = based(root, tmp_path)
    assert sorted(base.taken) == ["data/", "net.safetensors"]
    assert sorted(p.name for p in base.path.iterdir()) == [".git", "a.py", "data", "net.safetensors"]


def test_what_the_base_has_itself_stays_and_nothing_is_written_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = repository(tmp_path / "repo", {"weights/a": "of the base", "b": ""})
    (root / "out").symlink_to(outside)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "link")
    git(root, "rm", "-rq", "--cached", "weights", "out")
    (root / "out").unlink()
    (root / "out").mkdir()
    for path in ("weights/a", "weights/b", "out/c"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("of the head")
    (root / ".gitignore").write_text("weights/\nout/\n")
    git(root, "add", ".gitignore")
    git(root, "commit", "-qm", "no longer")
    base = based(root, tmp_path)
    assert (base.path / "weights" / "a").read_text() == "of the base" and base.taken == ["weights/b"]
    assert list(outside.iterdir()) == []


def test_compiled_code_of_the_head_is_a_doubt(tmp_path: Path) -> None:
    root = repository(tmp_path / "repo", {".gitignore": "*.so\n"}, {"a": "2"})
    (root / "fast.so").write_text("")
    (doubt,) = based(root, tmp_path).doubts
    assert doubt.id == "DB-BASE-02" and doubt.text == "compiled code is the head's on both sides: fast.so"


def pointer(content: str) -> str:
    """What Git LFS stores in git."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"


def with_filter(root: Path, name: str) -> None:
    """Sets a filter up that fails wherever it is run."""
    for key in ("smudge", "process"):
        git(root, "config", f"filter.{name}.{key}", f"touch {root}/was-run; false")
    git(root, "config", f"filter.{name}.required", "true")


def test_the_content_of_lfs_files_is_the_heads_where_it_is_the_same_or_from_the_store(tmp_path: Path) -> None:
    attributes = {".gitattributes": "*.st filter=lfs diff=lfs merge=lfs -text\n"}
    files = {name: pointer(name) for name in ("same.st", "stored.st", "lost.st")}
    root = repository(
        tmp_path / "repo", {**attributes, **files}, {"stored.st": pointer("new"), "lost.st": pointer("n")}
    )
    with_filter(root, "lfs")
    for name, content in {"same.st": "same.st", "stored.st": "new", "lost.st": "n"}.items():
        (root / name).write_text(content)
    digest = hashlib.sha256(b"stored.st").hexdigest()
    kept = root / ".git" / "lfs" / "objects" / digest[:2] / digest[2:4] / digest
    kept.parent.mkdir(parents=True)
    kept.write_text("stored.st")
    base = based(root, tmp_path)
    assert base.taken == ["same.st"]
    assert all((base.path / name).read_text() == name for name in ("same.st", "stored.st"))
    (doubt,) = base.doubts
    assert doubt.text == "the base lacks the content of lost.st, which Git LFS keeps and which is not in this clone"
    assert doubt.remedy.startswith("fetch it: git lfs fetch --include lost.st -- origin ")
    assert not (root / "was-run").exists()


def test_another_filter_is_not_run_either(tmp_path: Path) -> None:
    attributes = {".gitattributes": "secret* filter=crypt\n*.nb filter=strip\n"}
    root = repository(
        tmp_path / "repo", {**attributes, "secret1": "x1", "secret2": "x2", "a.nb": ""}, {"secret2": "x3"}
    )
    git(root, "config", "filter.strip.smudge", "cat")
    base = based(root, tmp_path)
    assert base.doubts == []  # as far as git is told here, files are stored as they are
    with_filter(root, "crypt")
    base = based(root, tmp_path / "again")
    assert base.taken == ["secret1"] and [d.text for d in base.doubts] == [
        "the base lacks the content of secret2: the filter 'crypt' of git is not run for it"
    ]
    assert not (root / "was-run").exists()


def test_hooks_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = repository(tmp_path / "repo", {"a": "1"}, {"a": "2"})
    template = tmp_path / "template" / "hooks"
    template.mkdir(parents=True)
    for folder in (root / ".git" / "hooks", template):
        for name in ("post-checkout", "post-index-change", "reference-transaction", "fsmonitor"):
            hook = folder / name
            hook.parent.mkdir(exist_ok=True)
            hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
            hook.chmod(0o755)
    git(root, "config", "core.fsmonitor", str(root / ".git" / "hooks" / "fsmonitor"))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(template.parent))
    based(root, tmp_path)
    assert head_of(root) == (git(root, "rev-parse", "HEAD"), False)
    assert not (tmp_path / "was-run").exists()


def test_a_check_within_a_hook_of_git_is_about_its_own_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, other = (repository(tmp_path / name, {"a": name}, {"a": "2"}) for name in ("repo", "other"))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert (based(root, tmp_path).path / "a").read_text() == "repo"


def with_submodule(tmp_path: Path) -> Path:
    """A repository whose submodule has a newer commit in the head than in the base."""
    library = repository(tmp_path / "library", {"value.py": "1", ".gitignore": "*.bin\n"}, {"value.py": "2"})
    root = repository(tmp_path / "repo", {"a": "1"})
    git(root, "submodule", "--quiet", "add", str(library), "lib", settings={"protocol.file.allow": "always"})
    git(root / "lib", "checkout", "-q", "HEAD~1")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "base")
    git(root / "lib", "checkout", "-q", "main")
    git(root, "commit", "-qam", "head")
    return root


def test_a_submodule_is_that_of_the_base(tmp_path: Path) -> None:
    root = with_submodule(tmp_path)
    (root / "lib" / "x.bin").write_text("downloaded")
    base = based(root, tmp_path)
    assert (base.path / "lib" / "value.py").read_text() == "1" and base.doubts == []
    assert base.taken == ["lib/x.bin"] and (base.path / "lib" / "x.bin").read_text() == "downloaded"


def test_a_submodule_that_cannot_be_had_is_a_doubt_unless_the_head_does_without(tmp_path: Path) -> None:
    root = with_submodule(tmp_path)
    shallow = tmp_path / "shallow"
    allow = {"protocol.file.allow": "always"}
    git(tmp_path, "clone", "-q", f"file://{root}", str(shallow))
    assert based(shallow, tmp_path / "without").doubts == []
    git(shallow, "config", "submodule.lib.url", f"file://{tmp_path / 'library'}")
    git(shallow, "submodule", "--quiet", "update", "--init", "--depth=1", settings=allow)
    (doubt,) = based(shallow, tmp_path).doubts
    assert doubt.id == "DB-BASE-01" and doubt.text.startswith("the base lacks the submodule lib at ")
    assert doubt.remedy.startswith("fetch it before the check: git -C lib fetch -- origin ")


def test_a_revision_that_is_not_there_is_told_with_how_to_fetch_it(tmp_path: Path) -> None:
    root = repository(tmp_path / "repo", {"a": "1"}, {"a": "2"})
    with pytest.raises(UserError, match=r"'origin/x y': this clone.*git fetch --depth=1 -- origin 'x y:refs/remotes/"):
        commit_of(root, "origin/x y")
    with pytest.raises(UserError, match="this clone does not have it"):
        commit_of(root, "--help")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{root}", str(shallow))
    with pytest.raises(UserError, match=r"this clone is shallow and does not have it; .*git fetch --deepen=100"):
        commit_of(shallow, "HEAD~1")
    with pytest.raises(UserError, match=r"lies in no git repository.*--baseline FILE"):
        top_level(tmp_path)
    git(root, "checkout", "-q", "--detach")
    assert commit_of(root, "main") == git(root, "rev-parse", "HEAD")


def test_a_repository_of_another_user_is_told_apart_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = repository(tmp_path / "repo", {"a": "1"})
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError, match="of another user, which git does not trust; .*safe.directory"):
        top_level(root)
