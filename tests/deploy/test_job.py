"""Jobs and results: a job is a bundle as plain files, and what does not belong to it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dynbench.deploy import build
from dynbench.deploy.bundle import EXPECTED, Manifest, sha256
from dynbench.deploy.job import KNOWN_AHEAD, Job, Result, Timing, read_job, write_job
from dynbench.errors import UserError
from dynbench.experiment import Options, load_specs
from dynbench.experiment.build import prepare
from tests.deploy import browser_jobs
from tests.deploy.test_bundle import TINY


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (spec,) = load_specs([str(TINY)])
    return build.compile_bundle(spec, tmp_path_factory.mktemp("bundles") / "tiny", Options()).folder


def test_a_job_holds_the_bundle_as_plain_files(bundle: Path, tmp_path: Path) -> None:
    job = write_job(bundle, tmp_path / "job", Timing(batch_sizes=[1, 4], cpus=[1]))
    assert read_job(tmp_path / "job") == job
    there = {str(f.relative_to(tmp_path / "job")) for f in (tmp_path / "job").rglob("*") if f.is_file()}
    assert there == {*job.sha256, "job.json"}
    assert all(sha256((tmp_path / "job" / name).read_bytes()) == right for name, right in job.sha256.items())
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_bytes())
    portable = {g.file for g in manifest.graphs if g.optimised_for is None}
    assert {n for n in there if n.endswith(".onnx")} == portable
    assert job.arms[0].graphs.single == "single.onnx" and job.arms[0].graphs.any == "dynamic.onnx"
    expected = np.load(bundle / EXPECTED)
    for arm in job.arms:
        pairs = [(a.file, f"{arm.network}/{a.output}") for a in arm.answers]
        for d in arm.decisions:
            pairs += [(d.expected, f"decision/{d.label}"), (d.reached, f"reached/{d.label}")]
        for file, key in pairs:
            assert np.array_equal(np.load(tmp_path / "job" / file), expected[key])
    assert job.arms[0].decisions and all(not arm.decisions for arm in job.arms[1:])


def test_two_jobs_are_told_apart(bundle: Path, tmp_path: Path) -> None:
    ids = {write_job(bundle, tmp_path / str(i), Timing()).job_id for i in range(2)}
    assert len(ids) == 2


def test_decisions_that_depend_on_the_batch_need_the_whole_stream(bundle: Path, tmp_path: Path) -> None:
    file = bundle / "manifest.json"
    before = file.read_text()
    table = json.loads(before)
    try:
        file.write_text(json.dumps(table | {"batch_scope": True}))
        with pytest.raises(UserError, match=f"--batch {table['items']}"):
            write_job(bundle, tmp_path / "job", Timing(batch_sizes=[1]))
        assert write_job(bundle, tmp_path / "job", Timing(batch_sizes=[table["items"]])).batch_sizes == [table["items"]]
    finally:
        file.write_text(before)


def made_up(folder: Path, **changes: Any) -> Path:
    browser_jobs.write(folder)
    file = folder / "job.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"sha256": {}}, "dynamic.onnx has no sha256"),
        ({"job_id": "x"}, "job_id"),
        ({"batch_sizes": []}, "batch_sizes"),
        ({"more": 1}, "more"),
    ],
)
def test_a_malformed_job_is_one_sentence(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=f"job.json is no job: .*{why}") as e:
        read_job(made_up(tmp_path / "job", **changes))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b/c", ".hidden", "a/../b", "a\\b", "a//b", "é", ""])
def test_a_file_outside_of_the_job_is_refused(tmp_path: Path, name: str) -> None:
    job = read_job(made_up(tmp_path / "job"))
    with pytest.raises(ValidationError, match="is no name of a file of a job"):
        Job.model_validate(job.model_dump() | {"sha256": job.sha256 | {name: "0"}})


def test_a_result_of_the_job_is_accepted_and_of_another_not(tmp_path: Path) -> None:
    job = read_job(made_up(tmp_path / "job"))
    result = Result.model_validate(browser_jobs.result())
    assert result.of(job) == result
    other = Result.model_validate(browser_jobs.result(job_id="f" * 32))
    with pytest.raises(ValueError, match="a result of another job"):
        other.of(job)


def test_an_error_that_is_no_number_is_called_nan() -> None:
    check = browser_jobs.result()["checks"][0]
    assert Result.model_validate(browser_jobs.result(checks=[check | {"error": "nan"}])).checks[0].error == "nan"
    for wrong in ("inf", float("nan"), float("inf"), -1):
        with pytest.raises(ValidationError):
            Result.model_validate(browser_jobs.result(checks=[check | {"error": wrong}]))


def test_a_control_gets_the_decisions_that_the_network_makes(tmp_path: Path) -> None:
    (spec,) = load_specs([str(TINY)])
    prepared = prepare(spec, Options())
    build.compile_prepared(prepared, tmp_path / "bundle", controls=True)
    job = write_job(tmp_path / "bundle", tmp_path / "job", Timing(), controls=True)
    known, dynamic = job.arms[-1], job.arms[0]
    assert known.name == KNOWN_AHEAD and known.compared and not known.decisions
    assert known.graphs.single == "known-single.onnx" and {g.file for g in known.given} <= {
        d.expected for d in dynamic.decisions
    }
    assert [a.file for a in known.answers] == [a.file for a in dynamic.answers]
    without = write_job(tmp_path / "bundle", tmp_path / "other", Timing())
    assert KNOWN_AHEAD not in {arm.name for arm in without.arms} and "known.onnx" not in without.sha256
