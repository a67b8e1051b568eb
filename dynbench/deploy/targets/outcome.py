"""What all targets that fetch a result do with it: prove that it is whole, and the one that was asked for."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import ValidationError

from dynbench.deploy.bundle import sha256
from dynbench.deploy.job import MOST_RESULT_BYTES, RESULT, RESULT_SHA256, Job, Result
from dynbench.deploy.targets.agents import VERSIONS
from dynbench.deploy.targets.base import Failed, Lost
from dynbench.errors import UserError
from dynbench.files import make_own_folder, write_bytes
from dynbench.reading import parse_json
from dynbench.store.jsonable import first_fault


def proved(content: bytes, digest: str, job: Job, agent: str, device: str) -> Result:
    """A result that came from a device.

    Args:
        content: of `result.json`.
        digest: of `result.sha256`.
        job: that was asked for.
        agent: that was started.
        device: its name.

    Raises:
        Lost: it did not come as it was written.
        Failed: it is of another job, agent or version, malformed, or says that nothing could be measured.
    """
    if len(content) > MOST_RESULT_BYTES:
        raise Failed(f"{device}: its result is larger than {MOST_RESULT_BYTES >> 20} MiB")
    if sha256(content) != digest.strip():
        raise Lost(f"{device}: its result did not arrive as it was written: the sha256 differs")
    try:
        result = Result.model_validate(parse_json(content, "result.json")).of(job)
    except ValidationError as e:
        raise Failed(f"{device}: what it sent is no result: {first_fault(e)}") from e
    except (UserError, ValueError) as e:
        raise Failed(f"{device}: what it sent is no result: {e}") from e
    if result.agent.name != agent or result.agent.version != VERSIONS.get(agent, result.agent.version):
        raise Failed(
            f"{device}: it was measured by agent {result.agent.name!r} of version {result.agent.version}; "
            f"{agent!r} of version {VERSIONS.get(agent, '?')} was asked for"
        )
    if result.status != "ok":
        raise Failed(f"{device}: {result.reason}")
    return result


def kept(content: bytes, job_folder: Path) -> Path:
    """Stores a proved result below its job, each in a folder of its own. Returns where."""
    place = job_folder / "results" / secrets.token_hex(4)
    make_own_folder(place.parent)
    make_own_folder(place)
    write_bytes(place / RESULT, content)
    write_bytes(place / RESULT_SHA256, sha256(content).encode())
    return place / RESULT
