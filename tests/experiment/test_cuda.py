"""The whole way from a workload file to a run directory, on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynbench.experiment import Options, run_experiment
from dynbench.store.run import Run

pytestmark = pytest.mark.cuda


def test_a_gpu_run_has_device_time_launches_and_waits(tmp_path: Path) -> None:
    tiny = Path(__file__).parent / "tiny" / "tiny.toml"
    options = Options(device="cuda:0", time_limit_s=0.5, precision=0.5, decisions=["learned"])
    run_experiment([str(tiny)], options, tmp_path / "run", command=[])
    cells = {(c.name, c.batch_size): c for c in Run.open(tmp_path / "run").cells}
    masking, compaction = cells["masking", 4], cells["compaction", 4]
    assert masking.status == compaction.status == "ok"
    assert masking.latency is not None and isinstance(masking.latency.device_stream_ms, float)
    assert isinstance(masking.kernel_launches, float) and masking.kernel_launches > 0
    assert isinstance(compaction.host_syncs, float) and isinstance(masking.host_syncs, float)
    assert compaction.host_syncs > masking.host_syncs
    assert masking.memory is not None and isinstance(masking.memory.peak_bytes, float)
